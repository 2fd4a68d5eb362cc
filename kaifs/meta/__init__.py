"""LMDB tables and the records in them. The only importer of lmdb."""
