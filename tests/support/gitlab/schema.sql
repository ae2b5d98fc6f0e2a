-- The tables and columns of GitLab that locate files and repositories.
create table schema_migrations (version varchar primary key);
create table ar_internal_metadata (key varchar primary key, value varchar,
    created_at timestamp not null default now(), updated_at timestamp not null default now());
create table application_settings (id serial primary key, uuid varchar,
    repository_storages_weighted jsonb not null default '{}',
    database_max_running_batched_background_migrations int not null default 2,
    created_at timestamp default now(), updated_at timestamp default now());
create table users (id bigserial primary key, username varchar, name varchar, email varchar not null default '',
    encrypted_password varchar not null default '', admin boolean not null default false,
    created_at timestamp default now(), updated_at timestamp default now());
create table namespaces (id bigserial primary key, name varchar not null, path varchar not null, owner_id bigint,
    type varchar not null default 'User', parent_id bigint, traversal_ids int[] not null default '{}',
    created_at timestamp default now(), updated_at timestamp default now());
create table projects (id bigserial primary key, name varchar, path varchar, description text,
    namespace_id bigint not null references namespaces, creator_id bigint, visibility_level int not null default 0,
    repository_storage varchar not null default 'default', storage_version smallint default 2,
    pool_repository_id bigint, archived boolean not null default false,
    pending_delete boolean default false, lfs_enabled boolean,
    created_at timestamp default now(), updated_at timestamp default now());
create index index_projects_on_name_trigram on projects using gin (name gin_trgm_ops);
create table routes (id bigserial primary key, source_id bigint not null, source_type varchar not null,
    path varchar not null unique, name varchar, namespace_id bigint,
    created_at timestamp default now(), updated_at timestamp default now());
create table redirect_routes (id bigserial primary key, source_id bigint not null, source_type varchar not null,
    path varchar not null unique, created_at timestamp default now(), updated_at timestamp default now());
create table shards (id bigserial primary key, name varchar not null unique);
create table project_repositories (id bigserial primary key, shard_id bigint not null references shards,
    disk_path varchar not null unique, project_id bigint not null unique references projects);
create table pool_repositories (id bigserial primary key, shard_id bigint not null references shards,
    disk_path varchar unique, state varchar, source_project_id bigint references projects);
alter table projects add foreign key (pool_repository_id) references pool_repositories;
create table fork_networks (id bigserial primary key, root_project_id bigint unique, deleted_root_project_name varchar);
create table fork_network_members (id bigserial primary key, fork_network_id bigint not null references fork_networks,
    project_id bigint not null unique references projects, forked_from_project_id bigint);
create table project_wiki_repositories (id bigserial primary key, project_id bigint not null unique references projects,
    created_at timestamp default now(), updated_at timestamp default now());
create table design_management_repositories (id bigserial primary key,
    project_id bigint not null unique references projects,
    created_at timestamp default now(), updated_at timestamp default now());
create table snippets (id bigserial primary key, title varchar, author_id bigint not null, project_id bigint,
    type varchar, visibility_level int not null default 0,
    created_at timestamp default now(), updated_at timestamp default now());
create table snippet_repositories (snippet_id bigint primary key references snippets,
    shard_id bigint not null references shards, disk_path varchar not null unique);
create table group_wiki_repositories (shard_id bigint not null references shards,
    group_id bigint primary key references namespaces, disk_path varchar not null unique);
create table events (id bigserial primary key, project_id bigint, author_id bigint not null, action smallint not null,
    created_at timestamp not null default now(), updated_at timestamp not null default now());
create table push_event_payloads (event_id bigint primary key references events, commit_count bigint not null,
    action smallint not null, ref_type smallint not null, commit_from bytea, commit_to bytea, ref text,
    commit_title varchar(70));
create table uploads (id bigserial primary key, size bigint not null, path varchar(511) not null, checksum varchar(64),
    model_id bigint, model_type varchar, uploader varchar not null, created_at timestamp not null default now(),
    store int default 1, mount_point varchar, secret varchar);
create table lfs_objects (id bigserial primary key, oid varchar not null unique, size bigint not null, file varchar,
    file_store int default 1, created_at timestamp default now(), updated_at timestamp default now());
create table lfs_objects_projects (id bigserial primary key, lfs_object_id bigint not null, project_id bigint not null,
    repository_type smallint, created_at timestamp default now(), updated_at timestamp default now());
create table merge_request_diffs (id bigserial primary key, merge_request_id bigint not null, external_diff varchar,
    external_diff_store int default 1, stored_externally boolean,
    created_at timestamp default now(), updated_at timestamp default now());
create table merge_request_diff_files (merge_request_diff_id bigint not null, relative_order int not null,
    external_diff_offset int, external_diff_size int, primary key (merge_request_diff_id, relative_order));
create table packages_package_files (id bigserial primary key, package_id bigint not null, project_id bigint,
    size bigint, file_store int default 1, file_sha256 bytea, file_name varchar not null, file text not null,
    created_at timestamp default now(), updated_at timestamp default now());
create table terraform_states (id bigserial primary key, project_id bigint not null, name varchar not null, uuid varchar(32) not null,
    created_at timestamp default now(), updated_at timestamp default now());
create table terraform_state_versions (id bigserial primary key, terraform_state_id bigint not null, version int not null,
    file_store smallint not null default 1, file text not null,
    created_at timestamp default now(), updated_at timestamp default now());
create table pages_deployments (id bigserial primary key, project_id bigint not null, size int not null,
    file_store smallint not null default 1, file text not null, file_count int not null default 1,
    file_sha256 bytea not null, created_at timestamp default now(), updated_at timestamp default now());
create table ci_secure_files (id bigserial primary key, project_id bigint not null, name text not null, file text not null,
    file_store smallint not null default 1, checksum bytea not null,
    created_at timestamp default now(), updated_at timestamp default now());
create table ci_job_artifacts (id bigserial primary key, project_id bigint not null, job_id bigint not null,
    file_type int not null, size bigint, file varchar, file_store int default 1, file_sha256 bytea,
    file_format smallint, file_location smallint, partition_id bigint not null default 100,
    created_at timestamptz not null default now(), updated_at timestamptz not null default now(), expire_at timestamptz);
create table oauth_applications (id bigserial primary key, name varchar not null, uid varchar not null unique,
    secret varchar not null, redirect_uri text not null, scopes varchar not null default '', owner_id bigint,
    owner_type varchar, trusted boolean not null default false, confidential boolean not null default true,
    created_at timestamp default now(), updated_at timestamp default now());
create table batched_background_migrations (id bigserial primary key,
    created_at timestamptz not null default now(), updated_at timestamptz not null default now(),
    min_value bigint not null default 1, max_value bigint not null, batch_size int not null, sub_batch_size int not null,
    "interval" smallint not null, status smallint not null default 0, job_class_name text not null,
    batch_class_name text not null default 'PrimaryKeyBatchingStrategy', table_name text not null,
    column_name text not null, job_arguments jsonb not null default '[]', total_tuple_count bigint,
    pause_ms int not null default 100, max_batch_size int, started_at timestamptz, on_hold_until timestamptz,
    gitlab_schema text not null, finished_at timestamptz, queued_migration_version text,
    min_cursor jsonb, max_cursor jsonb);
create table batched_background_migration_jobs (id bigserial primary key,
    created_at timestamptz not null default now(), updated_at timestamptz not null default now(),
    started_at timestamptz, finished_at timestamptz,
    batched_background_migration_id bigint not null references batched_background_migrations,
    min_value bigint, max_value bigint, batch_size int not null, sub_batch_size int not null,
    status smallint not null default 0, attempts smallint not null default 0, metrics jsonb not null default '{}',
    pause_ms int not null default 100);

insert into schema_migrations select '20250' || lpad((101000000 + n * 7919)::text, 9, '0') from generate_series(1, 40) n;
insert into ar_internal_metadata (key, value) values ('environment', 'production'), ('schema_sha1', md5('schema'));
