"""The schema's history, run by `Database.migrate` alone. A migration that was released is never edited."""
