//! What a running service consists of, how it is copied consistently and how it
//! comes back. Nothing is here yet: directory trees, live bare repositories
//! among them, are the business of the `store` crate.
