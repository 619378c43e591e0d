"""Maps of collections: the rows of a table in two dimensions, as a picture or as a page that stands alone."""
