"""Frames of video files and folders, exactly."""
