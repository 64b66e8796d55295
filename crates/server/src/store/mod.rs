//! Rows: what should be, and what is owed. All SQL of the tree lives under this folder.
