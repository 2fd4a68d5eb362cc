"""A file system inside a root: inodes, dentries, extents, xattrs; walks and diffs of it."""
