-- The local file of every row: path below the data directory, SHA-256 and size if the
-- row has them, and kind and id of its content.
create temporary view files (path, hash, size, kind, id) as
    select 'gitlab-rails/uploads/' || case uploader
            when 'NamespaceFileUploader' then '-/system/namespace/' || model_id || '/'
            when 'PersonalFileUploader' then '-/system/personal_snippet/' || model_id || '/'
            else '' end || regexp_replace(path, '^uploads/', ''), checksum, size, 'upload', id
        from uploads where store = 1
    union all select 'gitlab-rails/shared/lfs-objects/' || substr(oid, 1, 2) || '/' || substr(oid, 3, 2) || '/' || file,
        oid, size, 'lfs', id from lfs_objects where file_store = 1
    union all select 'gitlab-rails/shared/external-diffs/merge_request_diffs/mr-' || merge_request_id || '/' || external_diff,
        null, null, 'diff', id from merge_request_diffs where stored_externally and external_diff_store = 1
    union all select 'gitlab-rails/shared/packages/' || pg_temp.hashed(project_id) || '/packages/' || package_id
            || '/files/' || id || '/' || file,
        encode(file_sha256, 'hex'), size, 'package', id from packages_package_files where file_store = 1
    union all select 'gitlab-rails/shared/terraform_state/' || pg_temp.hashed(project_id) || '/' || uuid || '/' || file,
        null, null, 'terraform', v.id
        from terraform_state_versions v join terraform_states s on s.id = terraform_state_id where file_store = 1
    union all select 'gitlab-rails/shared/pages/@hashed/' || pg_temp.hashed(project_id) || '/pages_deployments/' || id
            || '/' || file,
        encode(file_sha256, 'hex'), size, 'pages', id from pages_deployments where file_store = 1
    union all select 'gitlab-rails/shared/ci_secure_files/' || pg_temp.hashed(project_id) || '/secure_files/' || id
            || '/' || file,
        encode(checksum, 'hex'), null, 'secure', id from ci_secure_files where file_store = 1
    union all select 'gitlab-rails/shared/artifacts/' || pg_temp.hashed(project_id) || '/'
            || to_char(created_at at time zone 'UTC', 'YYYY_MM_DD') || '/' || job_id || '/' || id || '/' || file,
        encode(file_sha256, 'hex'), size, 'artifact', id from ci_job_artifacts where file_store = 1;
