-- Rows of an instance with :projects projects. Of ten, the fourth is the parent of the fifth.
insert into shards (name) values ('default'), ('storage2');
insert into application_settings (uuid, repository_storages_weighted)
    values (gen_random_uuid(), '{"default": 60, "storage2": 40}');
insert into users (username, name, email, admin)
    select 'user' || n, 'User ' || n, 'user' || n || '@example.com', n = 1 from generate_series(1, 5) n;
insert into namespaces (name, path, type, traversal_ids)
    select 'Group ' || n, 'group' || n, 'Group', array[n] from generate_series(1, 3) n;
insert into routes (source_id, source_type, path, name)
    select id, 'Namespace', path, name from namespaces;

insert into projects (name, path, namespace_id, creator_id, visibility_level, repository_storage)
    select 'Project ' || n, 'project' || n, 1 + n % 3, 1 + n % 5, 20,
        -- A fork is in the storage of its pool, which is that of its parent.
        case when (n - (n % 10 = 5)::int) % 3 = 0 then 'storage2' else 'default' end
    from generate_series(1, :projects) n;
insert into routes (source_id, source_type, path, name)
    select p.id, 'Project', n.path || '/' || p.path, n.name || ' / ' || p.name
    from projects p join namespaces n on n.id = p.namespace_id;
insert into redirect_routes (source_id, source_type, path) values (1, 'Project', 'old-group/project1');
insert into project_repositories (shard_id, disk_path, project_id)
    select s.id, '@hashed/' || pg_temp.hashed(p.id), p.id
    from projects p join shards s on s.name = p.repository_storage;
insert into pool_repositories (shard_id, state, source_project_id)
    select s.id, 'ready', p.id from projects p join shards s on s.name = p.repository_storage
    where p.id % 10 = 4 and p.id < :projects order by p.id;
update pool_repositories set disk_path = '@pools/' || pg_temp.hashed(id);
update projects set pool_repository_id = pool.id from pool_repositories pool
    where projects.id in (pool.source_project_id, pool.source_project_id + 1);
insert into fork_networks (root_project_id) select source_project_id from pool_repositories order by id;
insert into fork_network_members (fork_network_id, project_id, forked_from_project_id)
    select id, root_project_id, null from fork_networks
    union all select id, root_project_id + 1, root_project_id from fork_networks;
insert into project_wiki_repositories (project_id) select id from projects where id % 2 = 1;
insert into design_management_repositories (project_id) select id from projects where id % 5 = 2;
insert into snippets (title, author_id, project_id, type)
    select 'Snippet ' || n, 1, n, 'ProjectSnippet' from generate_series(1, 1 + :projects / 5) n;
insert into snippet_repositories (snippet_id, shard_id, disk_path)
    select id, 1 + id % 2, '@snippets/' || pg_temp.hashed(id) from snippets;
insert into group_wiki_repositories (shard_id, group_id, disk_path)
    select 1, id, '@groups/' || pg_temp.hashed(id) || '.wiki' from namespaces where id = 1;

insert into uploads (size, path, checksum, model_id, model_type, uploader, secret)
    select pg_temp.size('upload', p.id), '@hashed/' || pg_temp.hashed(p.id) || '/' || md5('secret' || p.id) || '/image.png',
        encode(pg_temp.hash('upload', p.id), 'hex'), p.id, 'Project', 'FileUploader', md5('secret' || p.id)
    from projects p order by p.id;
insert into uploads (size, path, checksum, model_id, model_type, uploader, mount_point)
    select pg_temp.size('upload', :projects + u.id), 'uploads/-/system/user/avatar/' || u.id || '/avatar.png',
        encode(pg_temp.hash('upload', :projects + u.id), 'hex'), u.id, 'User', 'AvatarUploader', 'avatar'
    from users u order by u.id;
-- Relative to the directory of a group, and of a snippet without a project.
insert into uploads (size, path, checksum, model_id, model_type, uploader, secret)
    select pg_temp.size('upload', n), md5('secret' || n) || '/notes.txt', encode(pg_temp.hash('upload', n), 'hex'), 1,
        case when n % 2 = 1 then 'Namespace' else 'Snippet' end,
        case when n % 2 = 1 then 'NamespaceFileUploader' else 'PersonalFileUploader' end, md5('secret' || n)
    from generate_series(:projects + 6, :projects + 7) n order by n;
insert into lfs_objects (oid, size, file)
    select oid, pg_temp.size('lfs', n), substr(oid, 5)
    from generate_series(1, :projects) n, encode(pg_temp.hash('lfs', n), 'hex') oid order by n;
insert into lfs_objects_projects (lfs_object_id, project_id) select id, id from lfs_objects;
insert into merge_request_diffs (merge_request_id, external_diff, stored_externally)
    select n, 'diff-' || n, true from generate_series(1, :projects / 2) n;
insert into merge_request_diff_files
    select id, 0, 0, 32 from merge_request_diffs
    union all select id, 1, 32, pg_temp.size('diff', id) - 32 from merge_request_diffs;
insert into packages_package_files (package_id, project_id, size, file_sha256, file_name, file)
    select n, n, pg_temp.size('package', n), pg_temp.hash('package', n), 'lib.tgz', 'lib.tgz'
    from generate_series(1, :projects / 2) n;
insert into terraform_states (project_id, name, uuid)
    select n, 'production', md5('terraform' || n) from generate_series(1, 1 + :projects / 10) n;
insert into terraform_state_versions (terraform_state_id, version, file) select id, 1, '1.tfstate' from terraform_states;
insert into pages_deployments (project_id, size, file, file_sha256)
    select n, pg_temp.size('pages', n), 'pages.zip', pg_temp.hash('pages', n)
    from generate_series(1, 1 + :projects / 10) n;
insert into batched_background_migrations (max_value, batch_size, sub_batch_size, "interval", status, job_class_name,
    table_name, column_name, job_arguments, total_tuple_count, gitlab_schema) values
    (5000, 1000, 100, 120, 3, 'CopyColumnUsingBackgroundMigrationJob', 'push_event_payloads', 'event_id',
        '[["event_id"], ["event_id_convert_to_bigint"]]', 5000, 'gitlab_main'),
    (9000, 1000, 100, 120, 6, 'BackfillProjectNamespaces', 'projects', 'id', '[]', 9000, 'gitlab_main');
insert into batched_background_migration_jobs (batched_background_migration_id, min_value, max_value, batch_size,
    sub_batch_size, status, attempts) select 1, n * 1000 - 999, n * 1000, 1000, 100, 3, 1 from generate_series(1, 5) n;
