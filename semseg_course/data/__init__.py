"Data sets: drawn, downloaded, or the reader's own."
