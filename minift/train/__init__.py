"""Training: loop.py is the whole of it; the other files are what it leans on."""
