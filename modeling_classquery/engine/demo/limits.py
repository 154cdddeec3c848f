"""What a request to the page may take, by default."""

MAX_SECONDS = 300.0
MAX_UPLOAD_MB = 500
