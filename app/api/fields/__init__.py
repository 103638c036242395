"""The fields of a request that have no effect here, and the sentences for those that are wrong."""
