//! What was missed is made up for: at the start, after an overrun, after a
//! restart. In a made-up world of devices, told of as the kernel would,
//! and with real ones.

mod cases;
mod real;
mod soak;
mod world;
