//! Guest images that are embedded in the evertwin binary.
