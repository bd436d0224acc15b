"""From files to batches: records.py -> sources.py -> split.py -> examples.py -> batches.py; pydocs.py is data every machine has."""
