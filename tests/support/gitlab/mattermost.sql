-- The tables of Mattermost that a check may read.
create table systems (name varchar(64) primary key, value varchar(1024));
create table users (id varchar(26) primary key, username varchar(64), authservice varchar(32), authdata varchar(128));
create table channels (id varchar(26) primary key, teamid varchar(26), displayname varchar(64), createat bigint);
create table posts (id varchar(26) primary key, createat bigint, userid varchar(26), channelid varchar(26),
    message varchar(65535), fileids varchar(300));
create index idx_posts_message_txt on posts using gin (message gin_trgm_ops);
create table fileinfo (id varchar(26) primary key, creatorid varchar(26), postid varchar(26), createat bigint,
    path varchar(512), name varchar(256), size bigint, mimetype varchar(256));
insert into systems values ('Version', '10.2.0'), ('DiagnosticId', md5('diagnostic'));
insert into users select substr(md5('user' || n), 1, 26), 'user' || n, 'gitlab', n from generate_series(1, 5) n;
insert into channels select substr(md5('channel' || n), 1, 26), substr(md5('team'), 1, 26), 'Channel ' || n, 0
    from generate_series(1, 3) n;
insert into posts select substr(md5('post' || n), 1, 26), 1700000000000 + n, substr(md5('user1'), 1, 26),
    substr(md5('channel1'), 1, 26), 'Message ' || n, '[]' from generate_series(1, 200) n;
insert into fileinfo select substr(md5('file' || n), 1, 26), substr(md5('user1'), 1, 26), substr(md5('post' || n), 1, 26),
    1700000000000 + n, '20231114/teams/noteam/channels/' || substr(md5('channel1'), 1, 26) || '/users/'
    || substr(md5('user1'), 1, 26) || '/' || substr(md5('file' || n), 1, 26) || '/picture.png', 'picture.png',
    length(repeat(md5('file' || n), 50)), 'image/png' from generate_series(1, 4) n;
