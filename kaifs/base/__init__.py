"""Words that every other layer shares: typed ids, errors, labels, digests, clock."""
