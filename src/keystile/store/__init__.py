"""The configuration database: SQLAlchemy Core, one writer."""
