//! Every option, declared once and checked once.
