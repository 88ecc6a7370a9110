"""Model families: what turns a name, a folder or a checkpoint into a Model. One file a family."""
