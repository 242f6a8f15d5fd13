"""Imports: adapters that were trained elsewhere become versions, by updates that train nothing."""
