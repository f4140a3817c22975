//! A daemon in this process, and clients that speak to it through its socket as BuildKit's do.

mod builds;
mod client;
mod load;
mod services;
