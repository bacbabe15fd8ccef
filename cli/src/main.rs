//! c

#[allow(dead_code)]
mod commands {
    pub(crate) mod admin;
    pub(crate) mod pull;
    pub(crate) mod stats;
}
#[allow(dead_code)]
mod output;

fn main() {}
