"""Checking and preparing a data set before training."""
