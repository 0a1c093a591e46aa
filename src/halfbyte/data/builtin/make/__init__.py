"""How the tutor rows are made: `python -m halfbyte.data.builtin.make` writes tutor.jsonl again."""
