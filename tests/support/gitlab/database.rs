//! The databases, with the tables that locate files and repositories.

use crate::support::postgres::Postgres;

/// Database of everything except CI.
pub const MAIN: &str = "gitlabhq_production";

/// Database of CI, which also has the tables of the other one, empty.
pub const CI: &str = "gitlabhq_production_ci";

/// Functions for every script of rows.
pub const FUNCTIONS: &str = include_str!("functions.sql");

/// Creates roles, databases, tables and rows for this many projects.
pub fn make(postgres: &Postgres, projects: u32) {
    postgres.sql("postgres", format!("create role gitlab login;\n{}", owned_by_gitlab()));
    for (database, rows) in [(MAIN, include_str!("main.sql")), (CI, include_str!("ci.sql"))] {
        postgres.sql(
            database,
            format!(
                "\\set projects {projects}\n\
                 set client_min_messages = warning;\n\
                 create extension pg_trgm;\ncreate extension btree_gist;\n\
                 set role gitlab;\nbegin;\n{}\n{FUNCTIONS}\n{rows}\ncommit;\nanalyze;",
                include_str!("schema.sql"),
            ),
        );
    }
}

fn owned_by_gitlab() -> String {
    format!("create database {MAIN} owner gitlab;\ncreate database {CI} owner gitlab;")
}
