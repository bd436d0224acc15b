"""The hand-written decoder and the folders it is read from and written to; see transformer.py and folder.py."""
