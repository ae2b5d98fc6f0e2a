-- Every repository: storage, path with .git, pool, the project whose code it has, full path.
select storage, path || '.git', coalesce(pool || '.git', ''), project, full_path from (
    select s.name, r.disk_path, pool.disk_path, p.id, route.path, 1
        from project_repositories r join shards s on s.id = shard_id join projects p on p.id = project_id
        join routes route on route.source_type = 'Project' and route.source_id = p.id
        left join pool_repositories pool on pool.id = p.pool_repository_id
    union all select s.name, r.disk_path || '.wiki', null, null, route.path || '.wiki', 1
        from project_wiki_repositories w join project_repositories r using (project_id) join shards s on s.id = shard_id
        join routes route on route.source_type = 'Project' and route.source_id = project_id
    union all select s.name, r.disk_path || '.design', null, null, route.path || '.design', 1
        from design_management_repositories d join project_repositories r using (project_id)
        join shards s on s.id = shard_id
        join routes route on route.source_type = 'Project' and route.source_id = project_id
    union all select s.name, disk_path, null, null, 'snippets/' || snippet_id, 1
        from snippet_repositories join shards s on s.id = shard_id
    union all select s.name, disk_path, null, null, 'groups/' || group_id || '.wiki', 1
        from group_wiki_repositories join shards s on s.id = shard_id
    union all select s.name, disk_path, null, null, '', 0
        from pool_repositories join shards s on s.id = shard_id
) as repositories (storage, path, pool, project, full_path, rank) order by rank, path;
