-- For this session only: none of this is part of GitLab's database.
-- The path in hashed storage for an id.
create function pg_temp.hashed(id bigint) returns text immutable language sql as $$
    select substr(h, 1, 2) || '/' || substr(h, 3, 2) || '/' || h
    from encode(sha256(id::text::bytea), 'hex') h
$$;
-- Content of the file of a row.
create function pg_temp.content(kind text, id bigint) returns text immutable language sql as $$
    select string_agg(md5(kind || id || '-' || n), '') from generate_series(1, 10 + id * 37 % 200) n
$$;
create function pg_temp.hash(kind text, id bigint) returns bytea immutable language sql as $$
    select sha256(pg_temp.content(kind, id)::bytea)
$$;
create function pg_temp.size(kind text, id bigint) returns int immutable language sql as $$
    select length(pg_temp.content(kind, id))
$$;
