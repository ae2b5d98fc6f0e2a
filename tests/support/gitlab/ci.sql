-- Rows in the database of CI for an instance with :projects projects.
insert into ci_job_artifacts (project_id, job_id, file_type, size, file, file_sha256, file_format, file_location)
    select n, 1000 + n, 1, pg_temp.size('artifact', n), 'artifacts.zip', pg_temp.hash('artifact', n), 2, 2
    from generate_series(1, :projects) n;
insert into ci_secure_files (project_id, name, file, checksum)
    select n, 'key.jks', 'key.jks', pg_temp.hash('secure', n) from generate_series(1, 1 + :projects / 10) n;
insert into batched_background_migrations (max_value, batch_size, sub_batch_size, "interval", status, job_class_name,
    table_name, column_name, job_arguments, total_tuple_count, gitlab_schema) values
    (800, 1000, 100, 120, 3, 'BackfillPartitionId', 'ci_job_artifacts', 'id', '[]', 800, 'gitlab_ci');
