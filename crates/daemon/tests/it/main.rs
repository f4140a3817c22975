//! A daemon in this process, and clients that speak to it through its socket as BuildKit's do.

mod account;
mod accounts;
mod builds;
mod chosen_outputs;
#[allow(dead_code, reason = "the other tests use the rest of it")]
mod client;
mod hostile;
mod keys;
mod load;
mod nested;
mod outputs;
mod services;
mod traces;
