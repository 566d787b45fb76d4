//! tranship-wire
