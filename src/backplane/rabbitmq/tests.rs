//! What follows from a stream alone, without a broker.
