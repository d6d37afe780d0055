"""The shared store: run documents in a CouchDB database, through pycouchdb.

`CouchDBStore` is what others use. `connection` sends requests, `answers` turns what the server says into our errors,
`design` makes database and view, `documents` reads, `conflicts` settles what a cluster has twice, `changes` follows.
The answers were measured on Apache CouchDB 3.5.0.
"""

from watcher.statusdb.couchdb.connection import REFUSED_SECONDS
from watcher.statusdb.couchdb.design import DESIGN, DESIGN_DOCUMENT
from watcher.statusdb.couchdb.store import CouchDBStore

__all__ = ["DESIGN", "DESIGN_DOCUMENT", "REFUSED_SECONDS", "CouchDBStore"]
