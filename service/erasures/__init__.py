"""Erasures of data subjects: what had learnt from them, the rebuild without them, the signed receipt."""
