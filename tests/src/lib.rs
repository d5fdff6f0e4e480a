//! The harness of the end-to-end tests: real `evertwin` processes on hosts made of network namespaces.
//!
//! The tests need root, `/dev/kvm` and the tools that `make deps` installs. Nothing is skipped where one of them is
//! missing: the test fails and says what is missing. Helpers panic, since each panic is a failed test.

pub mod busy_file;
pub mod etcd;
pub mod kernel;
pub mod lab;
pub mod proxy;
pub mod ring;
pub mod seed;
pub mod stage;
