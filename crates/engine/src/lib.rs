//! tranship-engine
