//! Images out of one engine and into another.
