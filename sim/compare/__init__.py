"""Methods run side by side: one engine, one model, one data set, one byte counter."""
