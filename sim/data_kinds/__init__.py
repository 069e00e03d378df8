"""Which kinds of data do the defaults suit? Each beside the same samples without any loss."""
