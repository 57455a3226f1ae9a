"""Math evaluation: `python -m eval`. Imports rlhf, never the reverse."""
