//! tranship-agent
