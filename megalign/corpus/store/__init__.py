"""The token store: zarr v3 units that are written whole or not at all, and read by memory mapping."""

from megalign.corpus.store.check import Problem, check_store
from megalign.corpus.store.reader import StoredDocument, TokenStore
from megalign.corpus.store.writer import SPLITS, StoreWriter, UnitWriter, token_dtype

__all__ = [
    "SPLITS",
    "Problem",
    "StoreWriter",
    "StoredDocument",
    "TokenStore",
    "UnitWriter",
    "check_store",
    "token_dtype",
]
