"""One file per stage; this folder is the registry."""
