// The table shapes of four Open WebUI releases, oddities included: keys that are only a unique index, DATETIME
// columns that hold integers, `NOT NULL NOT NULL`, tables named `user` and `group`, a column named `key`.

/** The Open WebUI releases whose shape of file we can make. */
export type Version = '0.6.31' | '0.8.12' | '0.10.2' | '0.11'

/** One release's shape: its statements in the order to run them, and the Alembic revision it records. */
export type Shape = {
  readonly ddl: readonly string[]
  readonly revision: string
}

/** Tables that no release has changed since the first. */
const steady = [
  `CREATE TABLE alembic_version (
  version_num VARCHAR(32) NOT NULL, 
  CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
)`,
  `CREATE TABLE feedback (
  id TEXT NOT NULL, user_id TEXT, version BIGINT, type TEXT, data JSON, meta JSON, snapshot JSON,
  created_at BIGINT NOT NULL, updated_at BIGINT NOT NULL, PRIMARY KEY (id)
)`,
  `CREATE TABLE "folder" (
  id TEXT NOT NULL, parent_id TEXT, user_id TEXT NOT NULL, name TEXT NOT NULL, items JSON, meta JSON,
  is_expanded BOOLEAN NOT NULL, created_at BIGINT NOT NULL, updated_at BIGINT NOT NULL, data JSON,
  PRIMARY KEY (id, user_id)
)`,
  `CREATE TABLE message_reaction (
  id TEXT NOT NULL, user_id TEXT NOT NULL, message_id TEXT NOT NULL, name TEXT NOT NULL, created_at BIGINT,
  PRIMARY KEY (id), UNIQUE (id)
)`,
]

/** Tables from before Alembic: no primary key anywhere, a unique index instead (releases before 0.9.6). */
const peewee = [
  `CREATE TABLE "migratehistory" ("id" INTEGER NOT NULL PRIMARY KEY, "name" VARCHAR(255) NOT NULL, "migrated_at" DATETIME NOT NULL)`,
  `CREATE TABLE "chatidtag" ("id" VARCHAR(255) NOT NULL, "tag_name" VARCHAR(255) NOT NULL, "chat_id" VARCHAR(255) NOT NULL, "user_id" VARCHAR(255) NOT NULL, "timestamp" INTEGER NOT NULL NOT NULL)`,
  `CREATE UNIQUE INDEX "chatidtag_id" ON "chatidtag" ("id")`,
  `CREATE TABLE "auth" ("id" VARCHAR(255) NOT NULL, "email" VARCHAR(255) NOT NULL, "password" TEXT NOT NULL NOT NULL, "active" INTEGER NOT NULL)`,
  `CREATE UNIQUE INDEX "auth_id" ON "auth" ("id")`,
  `CREATE TABLE "chat" ("id" VARCHAR(255) NOT NULL, "user_id" VARCHAR(255) NOT NULL, "title" TEXT NOT NULL NOT NULL, "share_id" VARCHAR(255), "archived" INTEGER NOT NULL, "created_at" DATETIME NOT NULL NOT NULL, "updated_at" DATETIME NOT NULL NOT NULL, chat JSON, pinned BOOLEAN, meta JSON DEFAULT '{}' NOT NULL, folder_id TEXT)`,
  `CREATE UNIQUE INDEX "chat_id" ON "chat" ("id")`,
  `CREATE UNIQUE INDEX "chat_share_id" ON "chat" ("share_id")`,
  `CREATE TABLE "document" ("id" INTEGER NOT NULL PRIMARY KEY, "collection_name" VARCHAR(255) NOT NULL, "name" VARCHAR(255) NOT NULL, "title" TEXT NOT NULL NOT NULL, "filename" TEXT NOT NULL NOT NULL, "content" TEXT, "user_id" VARCHAR(255) NOT NULL, "timestamp" INTEGER NOT NULL NOT NULL)`,
  `CREATE UNIQUE INDEX "document_collection_name" ON "document" ("collection_name")`,
  `CREATE UNIQUE INDEX "document_name" ON "document" ("name")`,
  `CREATE TABLE "memory" ("id" VARCHAR(255) NOT NULL, "user_id" VARCHAR(255) NOT NULL, "content" TEXT NOT NULL, "updated_at" INTEGER NOT NULL, "created_at" INTEGER NOT NULL)`,
  `CREATE UNIQUE INDEX "memory_id" ON "memory" ("id")`,
  `CREATE TABLE "function" ("id" TEXT NOT NULL, "user_id" TEXT NOT NULL, "name" TEXT NOT NULL, "type" TEXT NOT NULL, "content" TEXT NOT NULL, "meta" TEXT NOT NULL, "created_at" INTEGER NOT NULL, "updated_at" INTEGER NOT NULL, "valves" TEXT, "is_active" INTEGER NOT NULL, "is_global" INTEGER NOT NULL)`,
  `CREATE UNIQUE INDEX "function_id" ON "function" ("id")`,
  `CREATE TABLE "tag" (
  id VARCHAR(255) NOT NULL, name VARCHAR(255) NOT NULL, user_id VARCHAR(255) NOT NULL, meta JSON,
  CONSTRAINT pk_id_user_id PRIMARY KEY (id, user_id)
)`,
]

/** What 0.6.31 has in a form of its own. */
const only0631 = [
  `CREATE TABLE "prompt" ("id" INTEGER NOT NULL PRIMARY KEY, "command" VARCHAR(255) NOT NULL, "user_id" VARCHAR(255) NOT NULL, "title" TEXT NOT NULL NOT NULL, "content" TEXT NOT NULL, "timestamp" INTEGER NOT NULL NOT NULL, access_control JSON)`,
  `CREATE UNIQUE INDEX "prompt_command" ON "prompt" ("command")`,
  `CREATE TABLE "user" ("id" VARCHAR(255) NOT NULL, "name" VARCHAR(255) NOT NULL, "email" VARCHAR(255) NOT NULL, "role" VARCHAR(255) NOT NULL, "profile_image_url" TEXT NOT NULL NOT NULL, "api_key" VARCHAR(255), "created_at" INTEGER NOT NULL NOT NULL, "updated_at" INTEGER NOT NULL NOT NULL, "last_active_at" INTEGER NOT NULL NOT NULL, "settings" TEXT, "info" TEXT, "oauth_sub" TEXT, username VARCHAR(50), bio TEXT, gender TEXT, date_of_birth DATE)`,
  `CREATE UNIQUE INDEX "user_api_key" ON "user" ("api_key")`,
  `CREATE UNIQUE INDEX "user_id" ON "user" ("id")`,
  `CREATE UNIQUE INDEX "user_oauth_sub" ON "user" ("oauth_sub")`,
  `CREATE TABLE "model" ("id" TEXT NOT NULL, "user_id" TEXT NOT NULL, "base_model_id" TEXT, "name" TEXT NOT NULL, "meta" TEXT NOT NULL, "params" TEXT NOT NULL, "created_at" INTEGER NOT NULL, "updated_at" INTEGER NOT NULL, access_control JSON, is_active BOOLEAN DEFAULT (1) NOT NULL)`,
  `CREATE UNIQUE INDEX "model_id" ON "model" ("id")`,
  `CREATE TABLE "tool" ("id" TEXT NOT NULL, "user_id" TEXT NOT NULL, "name" TEXT NOT NULL, "content" TEXT NOT NULL, "specs" TEXT NOT NULL, "meta" TEXT NOT NULL, "created_at" INTEGER NOT NULL, "updated_at" INTEGER NOT NULL, "valves" TEXT, access_control JSON)`,
  `CREATE UNIQUE INDEX "tool_id" ON "tool" ("id")`,
  `CREATE TABLE config (
  id INTEGER NOT NULL, data JSON NOT NULL, version INTEGER NOT NULL,
  created_at DATETIME DEFAULT (CURRENT_TIMESTAMP) NOT NULL, updated_at DATETIME DEFAULT (CURRENT_TIMESTAMP),
  PRIMARY KEY (id)
)`,
  `CREATE TABLE knowledge (
  id TEXT NOT NULL, user_id TEXT NOT NULL, name TEXT NOT NULL, description TEXT, data JSON, meta JSON,
  created_at BIGINT NOT NULL, updated_at BIGINT, access_control JSON, PRIMARY KEY (id)
)`,
  `CREATE TABLE "file" (
  id TEXT NOT NULL, user_id TEXT NOT NULL, filename TEXT NOT NULL, meta JSON, created_at INTEGER NOT NULL,
  hash TEXT, data JSON, updated_at BIGINT, path TEXT
, access_control JSON)`,
  `CREATE UNIQUE INDEX file_id ON file (id)`,
  `CREATE TABLE "group" (
  id TEXT NOT NULL, user_id TEXT, name TEXT, description TEXT, data JSON, meta JSON, permissions JSON,
  user_ids JSON, created_at BIGINT, updated_at BIGINT, PRIMARY KEY (id), UNIQUE (id)
)`,
  `CREATE TABLE channel (
  id TEXT NOT NULL, user_id TEXT, name TEXT, description TEXT, data JSON, meta JSON, access_control JSON,
  created_at BIGINT, updated_at BIGINT, type TEXT, PRIMARY KEY (id), UNIQUE (id)
)`,
  `CREATE TABLE message (
  id TEXT NOT NULL, user_id TEXT, channel_id TEXT, content TEXT, data JSON, meta JSON, created_at BIGINT,
  updated_at BIGINT, parent_id TEXT, PRIMARY KEY (id), UNIQUE (id)
)`,
  `CREATE TABLE channel_member (
  id TEXT NOT NULL, channel_id TEXT NOT NULL, user_id TEXT NOT NULL, created_at BIGINT,
  PRIMARY KEY (id), UNIQUE (id)
)`,
  `CREATE TABLE note (
  id TEXT NOT NULL, user_id TEXT, title TEXT, data JSON, meta JSON, access_control JSON, created_at BIGINT,
  updated_at BIGINT, PRIMARY KEY (id), UNIQUE (id)
)`,
  `CREATE TABLE oauth_session (
  id TEXT NOT NULL, user_id TEXT NOT NULL, provider TEXT NOT NULL, token TEXT NOT NULL,
  expires_at BIGINT NOT NULL, created_at BIGINT NOT NULL, updated_at BIGINT NOT NULL,
  PRIMARY KEY (id), FOREIGN KEY(user_id) REFERENCES user (id) ON DELETE CASCADE
)`,
]

/** What came between 0.6.31 and 0.8.12 and has stayed. */
const since08 = [
  `CREATE TABLE message (
  id TEXT NOT NULL, user_id TEXT, channel_id TEXT, content TEXT, data JSON, meta JSON, created_at BIGINT,
  updated_at BIGINT, parent_id TEXT, reply_to_id TEXT, is_pinned BOOLEAN DEFAULT 0 NOT NULL, pinned_at BIGINT,
  pinned_by TEXT, PRIMARY KEY (id), UNIQUE (id)
)`,
  `CREATE TABLE channel_member (
  id TEXT NOT NULL, channel_id TEXT NOT NULL, user_id TEXT NOT NULL, created_at BIGINT, status TEXT,
  is_active BOOLEAN DEFAULT 1 NOT NULL, is_channel_muted BOOLEAN DEFAULT 0 NOT NULL,
  is_channel_pinned BOOLEAN DEFAULT 0 NOT NULL, data JSON, meta JSON, joined_at BIGINT NOT NULL, left_at BIGINT,
  last_read_at BIGINT, updated_at BIGINT, role TEXT, invited_by TEXT, invited_at BIGINT,
  PRIMARY KEY (id), UNIQUE (id)
)`,
  `CREATE TABLE oauth_session (
  id TEXT NOT NULL, user_id TEXT NOT NULL, provider TEXT NOT NULL, token TEXT NOT NULL,
  expires_at BIGINT NOT NULL, created_at BIGINT NOT NULL, updated_at BIGINT NOT NULL,
  PRIMARY KEY (id), UNIQUE (id), FOREIGN KEY(user_id) REFERENCES user (id) ON DELETE CASCADE
)`,
  `CREATE TABLE "group" (
  id TEXT NOT NULL, user_id TEXT, name TEXT, description TEXT, data JSON, meta JSON, permissions JSON,
  created_at BIGINT, updated_at BIGINT, PRIMARY KEY (id), UNIQUE (id)
)`,
  `CREATE TABLE group_member (
  id TEXT NOT NULL, group_id TEXT NOT NULL, user_id TEXT NOT NULL, created_at BIGINT, updated_at BIGINT,
  PRIMARY KEY (id), CONSTRAINT uq_group_member_group_user UNIQUE (group_id, user_id), UNIQUE (id),
  FOREIGN KEY(group_id) REFERENCES "group" (id) ON DELETE CASCADE,
  FOREIGN KEY(user_id) REFERENCES user (id) ON DELETE CASCADE
)`,
  `CREATE TABLE api_key (
  id TEXT NOT NULL, user_id TEXT, "key" TEXT NOT NULL, data JSON, expires_at BIGINT, last_used_at BIGINT,
  created_at BIGINT NOT NULL, updated_at BIGINT NOT NULL, PRIMARY KEY (id), UNIQUE (id),
  FOREIGN KEY(user_id) REFERENCES user (id) ON DELETE CASCADE, UNIQUE ("key")
)`,
  `CREATE TABLE channel_webhook (
  id TEXT NOT NULL, user_id TEXT NOT NULL, channel_id TEXT NOT NULL, name TEXT NOT NULL, profile_image_url TEXT,
  token TEXT NOT NULL, last_used_at BIGINT, created_at BIGINT NOT NULL, updated_at BIGINT NOT NULL,
  PRIMARY KEY (id), UNIQUE (id), FOREIGN KEY(channel_id) REFERENCES channel (id) ON DELETE CASCADE
)`,
  `CREATE TABLE "channel_file" (
  id TEXT NOT NULL, user_id TEXT NOT NULL, channel_id TEXT NOT NULL, file_id TEXT NOT NULL,
  created_at BIGINT NOT NULL, updated_at BIGINT NOT NULL, message_id TEXT, PRIMARY KEY (id),
  CONSTRAINT uq_channel_file_channel_file UNIQUE (channel_id, file_id),
  CONSTRAINT fk_channel_file_message_id FOREIGN KEY(message_id) REFERENCES message (id) ON DELETE CASCADE,
  FOREIGN KEY(file_id) REFERENCES file (id) ON DELETE CASCADE,
  FOREIGN KEY(channel_id) REFERENCES channel (id) ON DELETE CASCADE
)`,
  `CREATE INDEX ix_channel_file_channel_id ON channel_file (channel_id)`,
  `CREATE INDEX ix_channel_file_file_id ON channel_file (file_id)`,
  `CREATE INDEX ix_channel_file_user_id ON channel_file (user_id)`,
  `CREATE TABLE chat_file (
  id TEXT NOT NULL, user_id TEXT NOT NULL, chat_id TEXT NOT NULL, file_id TEXT NOT NULL, message_id TEXT,
  created_at BIGINT NOT NULL, updated_at BIGINT NOT NULL, PRIMARY KEY (id),
  CONSTRAINT uq_chat_file_chat_file UNIQUE (chat_id, file_id),
  FOREIGN KEY(chat_id) REFERENCES chat (id) ON DELETE CASCADE,
  FOREIGN KEY(file_id) REFERENCES file (id) ON DELETE CASCADE
)`,
  `CREATE INDEX ix_chat_file_chat_id ON chat_file (chat_id)`,
  `CREATE INDEX ix_chat_file_message_id ON chat_file (message_id)`,
  `CREATE INDEX ix_chat_file_file_id ON chat_file (file_id)`,
  `CREATE INDEX ix_chat_file_user_id ON chat_file (user_id)`,
  `CREATE TABLE prompt_history (
  id TEXT NOT NULL, prompt_id TEXT NOT NULL, parent_id TEXT, snapshot JSON NOT NULL, user_id TEXT NOT NULL,
  commit_message TEXT, created_at BIGINT NOT NULL, PRIMARY KEY (id)
)`,
  `CREATE INDEX ix_prompt_history_prompt_id ON prompt_history (prompt_id)`,
  `CREATE TABLE chat_message (
  id TEXT NOT NULL, chat_id TEXT NOT NULL, user_id TEXT, role TEXT NOT NULL, parent_id TEXT, content JSON,
  output JSON, model_id TEXT, files JSON, sources JSON, embeds JSON, done BOOLEAN, status_history JSON,
  error JSON, usage JSON, created_at BIGINT, updated_at BIGINT,
  PRIMARY KEY (id), FOREIGN KEY(chat_id) REFERENCES chat (id) ON DELETE CASCADE
)`,
  `CREATE INDEX ix_chat_message_created_at ON chat_message (created_at)`,
  `CREATE INDEX ix_chat_message_chat_id ON chat_message (chat_id)`,
  `CREATE INDEX ix_chat_message_model_id ON chat_message (model_id)`,
  `CREATE INDEX ix_chat_message_user_id ON chat_message (user_id)`,
  `CREATE INDEX chat_message_chat_parent_idx ON chat_message (chat_id, parent_id)`,
  `CREATE INDEX chat_message_model_created_idx ON chat_message (model_id, created_at)`,
  `CREATE INDEX chat_message_user_created_idx ON chat_message (user_id, created_at)`,
  `CREATE TABLE access_grant (
  id TEXT NOT NULL, resource_type TEXT NOT NULL, resource_id TEXT NOT NULL, principal_type TEXT NOT NULL,
  principal_id TEXT NOT NULL, permission TEXT NOT NULL, created_at BIGINT NOT NULL, PRIMARY KEY (id),
  CONSTRAINT uq_access_grant_grant UNIQUE (resource_type, resource_id, principal_type, principal_id, permission)
)`,
  `CREATE INDEX idx_access_grant_resource ON access_grant (resource_type, resource_id)`,
  `CREATE INDEX idx_access_grant_principal ON access_grant (principal_type, principal_id)`,
  `CREATE TABLE "knowledge" (
  id TEXT NOT NULL, user_id TEXT NOT NULL, name TEXT NOT NULL, description TEXT, meta JSON,
  created_at BIGINT NOT NULL, updated_at BIGINT, data JSON, PRIMARY KEY (id)
)`,
  `CREATE TABLE "prompt" (
  id TEXT NOT NULL, command VARCHAR, user_id VARCHAR NOT NULL, name TEXT NOT NULL, content TEXT NOT NULL,
  data JSON, meta JSON, is_active BOOLEAN DEFAULT '1' NOT NULL, version_id TEXT, tags JSON,
  created_at BIGINT NOT NULL, updated_at BIGINT NOT NULL, PRIMARY KEY (id)
)`,
  `CREATE UNIQUE INDEX ix_prompt_new_command ON prompt (command)`,
  `CREATE TABLE "note" (
  id TEXT NOT NULL, user_id TEXT, title TEXT, data JSON, meta JSON, created_at BIGINT, updated_at BIGINT,
  PRIMARY KEY (id), UNIQUE (id)
)`,
  `CREATE TABLE "channel" (
  id TEXT NOT NULL, user_id TEXT, name TEXT, description TEXT, data JSON, meta JSON, created_at BIGINT,
  updated_at BIGINT, type TEXT, is_private BOOLEAN, archived_at BIGINT, archived_by TEXT, deleted_at BIGINT,
  deleted_by TEXT, updated_by TEXT, PRIMARY KEY (id), UNIQUE (id)
)`,
  `CREATE TABLE skill (
  id VARCHAR NOT NULL, user_id VARCHAR NOT NULL, name TEXT NOT NULL, description TEXT, content TEXT NOT NULL,
  meta JSON, is_active BOOLEAN NOT NULL, updated_at BIGINT NOT NULL, created_at BIGINT NOT NULL,
  PRIMARY KEY (id), UNIQUE (name)
)`,
  `CREATE INDEX idx_skill_user_id ON skill (user_id)`,
  `CREATE INDEX idx_skill_updated_at ON skill (updated_at)`,
]

/** What 0.8.12 has in a form of its own. */
const only0812 = [
  `CREATE TABLE config (
  id INTEGER NOT NULL, data JSON NOT NULL, version INTEGER NOT NULL,
  created_at DATETIME DEFAULT CURRENT_TIMESTAMP NOT NULL, updated_at DATETIME DEFAULT CURRENT_TIMESTAMP,
  PRIMARY KEY (id)
)`,
  `CREATE TABLE "user" (
  id VARCHAR(255) NOT NULL, name VARCHAR(255) NOT NULL, email VARCHAR(255) NOT NULL, role VARCHAR(255) NOT NULL,
  profile_image_url TEXT NOT NULL, created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL,
  last_active_at INTEGER NOT NULL, username VARCHAR(50), bio TEXT, gender TEXT, date_of_birth DATE,
  profile_banner_image_url TEXT, timezone VARCHAR, presence_state VARCHAR, status_emoji VARCHAR,
  status_message TEXT, status_expires_at BIGINT, oauth JSON, info JSON, settings JSON, scim JSON,
  CONSTRAINT pk_user_id PRIMARY KEY (id), CONSTRAINT uq_user_id UNIQUE (id)
)`,
  `CREATE UNIQUE INDEX user_id ON user (id)`,
  `CREATE TABLE knowledge_file (
  id TEXT NOT NULL, user_id TEXT NOT NULL, knowledge_id TEXT NOT NULL, file_id TEXT NOT NULL,
  created_at BIGINT NOT NULL, updated_at BIGINT NOT NULL, PRIMARY KEY (id),
  CONSTRAINT uq_knowledge_file_knowledge_file UNIQUE (knowledge_id, file_id),
  FOREIGN KEY(knowledge_id) REFERENCES knowledge (id) ON DELETE CASCADE,
  FOREIGN KEY(file_id) REFERENCES file (id) ON DELETE CASCADE
)`,
  `CREATE INDEX ix_knowledge_file_file_id ON knowledge_file (file_id)`,
  `CREATE INDEX ix_knowledge_file_user_id ON knowledge_file (user_id)`,
  `CREATE INDEX ix_knowledge_file_knowledge_id ON knowledge_file (knowledge_id)`,
  `CREATE TABLE "tool" (
  id TEXT NOT NULL, user_id TEXT NOT NULL, name TEXT NOT NULL, content TEXT NOT NULL, specs TEXT NOT NULL,
  meta TEXT NOT NULL, created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL, valves TEXT
)`,
  `CREATE UNIQUE INDEX tool_id ON tool (id)`,
  `CREATE TABLE "model" (
  id TEXT NOT NULL, user_id TEXT NOT NULL, base_model_id TEXT, name TEXT NOT NULL, meta TEXT NOT NULL,
  params TEXT NOT NULL, created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL,
  is_active BOOLEAN DEFAULT 1 NOT NULL
)`,
  `CREATE UNIQUE INDEX model_id ON model (id)`,
  `CREATE TABLE "file" (
  id TEXT NOT NULL, user_id TEXT NOT NULL, filename TEXT NOT NULL, meta JSON, created_at INTEGER NOT NULL,
  hash TEXT, data JSON, updated_at BIGINT, path TEXT
)`,
  `CREATE UNIQUE INDEX file_id ON file (id)`,
]

/** What a file first made by 0.10.2 has: primary keys throughout, and `config` as one row a setting. */
const since010 = [
  `CREATE TABLE auth (id VARCHAR NOT NULL, email VARCHAR, password TEXT, active BOOLEAN, PRIMARY KEY (id))`,
  `CREATE TABLE chat (
  id VARCHAR NOT NULL, user_id VARCHAR, title TEXT, created_at BIGINT, updated_at BIGINT, share_id TEXT,
  archived BOOLEAN, chat JSON, pinned BOOLEAN, meta JSON DEFAULT '{}' NOT NULL, folder_id TEXT, tasks JSON,
  summary TEXT, last_read_at BIGINT, PRIMARY KEY (id), UNIQUE (share_id)
)`,
  `CREATE TABLE chatidtag (
  id VARCHAR NOT NULL, tag_name VARCHAR, chat_id VARCHAR, user_id VARCHAR, timestamp BIGINT, PRIMARY KEY (id)
)`,
  `CREATE TABLE document (
  collection_name VARCHAR NOT NULL, name VARCHAR, title TEXT, filename TEXT, content TEXT, user_id VARCHAR,
  timestamp BIGINT, PRIMARY KEY (collection_name), UNIQUE (name)
)`,
  `CREATE TABLE function (
  id VARCHAR NOT NULL, user_id VARCHAR, name TEXT, type TEXT, content TEXT, meta TEXT, valves TEXT,
  is_active BOOLEAN, is_global BOOLEAN, updated_at BIGINT, created_at BIGINT, PRIMARY KEY (id)
)`,
  `CREATE TABLE memory (
  id VARCHAR NOT NULL, user_id VARCHAR, content TEXT, updated_at BIGINT, created_at BIGINT,
  type VARCHAR DEFAULT 'context' NOT NULL, path TEXT, meta JSON, PRIMARY KEY (id)
)`,
  `CREATE INDEX ix_memory_user_id ON memory (user_id)`,
  `CREATE INDEX ix_memory_type ON memory (type)`,
  `CREATE TABLE "config_old" (
  id INTEGER NOT NULL, data JSON NOT NULL, version INTEGER NOT NULL,
  created_at DATETIME DEFAULT CURRENT_TIMESTAMP NOT NULL, updated_at DATETIME DEFAULT CURRENT_TIMESTAMP,
  PRIMARY KEY (id)
)`,
  `CREATE TABLE config ("key" TEXT NOT NULL, value JSON NOT NULL, updated_at BIGINT, PRIMARY KEY ("key"))`,
  `CREATE TABLE "tag" (
  id VARCHAR NOT NULL, name VARCHAR, user_id VARCHAR, meta JSON,
  CONSTRAINT pk_id_user_id PRIMARY KEY (id, user_id)
)`,
  `CREATE TABLE "user" (
  id VARCHAR NOT NULL, name VARCHAR, email VARCHAR, role VARCHAR, profile_image_url TEXT, last_active_at BIGINT,
  updated_at BIGINT, created_at BIGINT, username VARCHAR(50), bio TEXT, gender TEXT, date_of_birth DATE,
  profile_banner_image_url TEXT, timezone VARCHAR, presence_state VARCHAR, status_emoji VARCHAR,
  status_message TEXT, status_expires_at BIGINT, oauth JSON, info JSON, settings JSON, scim JSON,
  PRIMARY KEY (id)
)`,
  `CREATE TABLE "tool" (
  id VARCHAR NOT NULL, user_id VARCHAR, name TEXT, content TEXT, specs TEXT, meta TEXT, valves TEXT,
  updated_at BIGINT, created_at BIGINT, PRIMARY KEY (id)
)`,
  `CREATE TABLE "model" (
  id TEXT NOT NULL, user_id TEXT, base_model_id TEXT, name TEXT, params TEXT, meta TEXT, updated_at BIGINT,
  created_at BIGINT, is_active BOOLEAN DEFAULT 1 NOT NULL, PRIMARY KEY (id)
)`,
  `CREATE TABLE "file" (
  id VARCHAR NOT NULL, user_id VARCHAR, filename TEXT, meta JSON, created_at BIGINT, hash TEXT, data JSON,
  updated_at BIGINT, path TEXT, PRIMARY KEY (id)
)`,
  `CREATE TABLE automation (
  id TEXT NOT NULL, user_id TEXT NOT NULL, name TEXT NOT NULL, data JSON NOT NULL, meta JSON,
  is_active BOOLEAN NOT NULL, last_run_at BIGINT, next_run_at BIGINT, created_at BIGINT NOT NULL,
  updated_at BIGINT NOT NULL, PRIMARY KEY (id)
)`,
  `CREATE INDEX ix_automation_next_run ON automation (next_run_at)`,
  `CREATE TABLE automation_run (
  id TEXT NOT NULL, automation_id TEXT NOT NULL, chat_id TEXT, status TEXT NOT NULL, error TEXT,
  created_at BIGINT NOT NULL, PRIMARY KEY (id)
)`,
  `CREATE INDEX ix_automation_run_automation_id ON automation_run (automation_id)`,
  `CREATE TABLE shared_chat (
  id TEXT NOT NULL, chat_id TEXT NOT NULL, user_id TEXT NOT NULL, title TEXT, chat JSON, created_at BIGINT,
  updated_at BIGINT, PRIMARY KEY (id), FOREIGN KEY(chat_id) REFERENCES chat (id) ON DELETE CASCADE
)`,
  `CREATE TABLE calendar (
  id TEXT NOT NULL, user_id TEXT NOT NULL, name TEXT NOT NULL, color TEXT, is_default BOOLEAN NOT NULL,
  data JSON, meta JSON, created_at BIGINT NOT NULL, updated_at BIGINT NOT NULL, PRIMARY KEY (id)
)`,
  `CREATE INDEX ix_calendar_user ON calendar (user_id)`,
  `CREATE TABLE calendar_event (
  id TEXT NOT NULL, calendar_id TEXT NOT NULL, user_id TEXT NOT NULL, title TEXT NOT NULL, description TEXT,
  start_at BIGINT NOT NULL, end_at BIGINT, all_day BOOLEAN NOT NULL, rrule TEXT, color TEXT, location TEXT,
  data JSON, meta JSON, is_cancelled BOOLEAN NOT NULL, created_at BIGINT NOT NULL, updated_at BIGINT NOT NULL,
  PRIMARY KEY (id)
)`,
  `CREATE INDEX ix_calendar_event_calendar ON calendar_event (calendar_id, start_at)`,
  `CREATE INDEX ix_calendar_event_user_date ON calendar_event (user_id, start_at)`,
  `CREATE TABLE calendar_event_attendee (
  id TEXT NOT NULL, event_id TEXT NOT NULL, user_id TEXT NOT NULL, status TEXT NOT NULL, meta JSON,
  created_at BIGINT NOT NULL, updated_at BIGINT NOT NULL, PRIMARY KEY (id),
  CONSTRAINT uq_event_attendee UNIQUE (event_id, user_id)
)`,
  `CREATE INDEX ix_calendar_event_attendee_user ON calendar_event_attendee (user_id, status)`,
  `CREATE TABLE pinned_note (
  id TEXT NOT NULL, user_id TEXT NOT NULL, note_id TEXT NOT NULL, created_at BIGINT NOT NULL, PRIMARY KEY (id),
  CONSTRAINT uq_pinned_note UNIQUE (user_id, note_id),
  FOREIGN KEY(note_id) REFERENCES note (id) ON DELETE CASCADE
)`,
  `CREATE TABLE knowledge_directory (
  id TEXT NOT NULL, knowledge_id TEXT NOT NULL, parent_id TEXT, name TEXT NOT NULL, user_id TEXT NOT NULL,
  created_at BIGINT NOT NULL, updated_at BIGINT NOT NULL, PRIMARY KEY (id),
  FOREIGN KEY(knowledge_id) REFERENCES knowledge (id) ON DELETE CASCADE,
  FOREIGN KEY(parent_id) REFERENCES knowledge_directory (id) ON DELETE CASCADE,
  CONSTRAINT uq_knowledge_directory_knowledge_parent_name UNIQUE (knowledge_id, parent_id, name)
)`,
  `CREATE INDEX ix_knowledge_directory_knowledge_id ON knowledge_directory (knowledge_id)`,
  `CREATE INDEX ix_knowledge_directory_parent_id ON knowledge_directory (parent_id)`,
  `CREATE TABLE "knowledge_file" (
  id TEXT NOT NULL, user_id TEXT NOT NULL, knowledge_id TEXT NOT NULL, file_id TEXT NOT NULL,
  created_at BIGINT NOT NULL, updated_at BIGINT NOT NULL, directory_id TEXT, PRIMARY KEY (id),
  CONSTRAINT uq_knowledge_file_knowledge_file UNIQUE (knowledge_id, file_id),
  CONSTRAINT fk_knowledge_file_directory_id FOREIGN KEY(directory_id)
    REFERENCES knowledge_directory (id) ON DELETE SET NULL,
  FOREIGN KEY(file_id) REFERENCES file (id) ON DELETE CASCADE,
  FOREIGN KEY(knowledge_id) REFERENCES knowledge (id) ON DELETE CASCADE
)`,
  `CREATE INDEX ix_knowledge_file_file_id ON knowledge_file (file_id)`,
  `CREATE INDEX ix_knowledge_file_knowledge_id ON knowledge_file (knowledge_id)`,
  `CREATE INDEX ix_knowledge_file_user_id ON knowledge_file (user_id)`,
  `CREATE INDEX ix_knowledge_file_directory_id ON knowledge_file (directory_id)`,
  `ALTER TABLE chat_message ADD COLUMN context_summary TEXT`,
]

/** What 0.11 adds; it changes no key. */
const since011 = [
  `ALTER TABLE chat ADD COLUMN current_message_id TEXT`,
  `ALTER TABLE chat ADD COLUMN variables JSON`,
  `ALTER TABLE chat ADD COLUMN timer_at BIGINT`,
  `ALTER TABLE "user" ADD COLUMN variables JSON`,
  `ALTER TABLE chat_message ADD COLUMN meta JSON`,
  `ALTER TABLE automation ADD COLUMN folder_id TEXT`,
  `CREATE INDEX ix_memory_id_user_id ON memory (id, user_id)`,
  `CREATE INDEX ix_automation_user_folder ON automation (user_id, folder_id)`,
  `CREATE UNIQUE INDEX uq_user_email_lower ON user (lower(email)) WHERE email IS NOT NULL`,
  `CREATE INDEX ix_group_member_user_id_group_id ON group_member (user_id, group_id)`,
  `CREATE INDEX timer_at_idx ON chat (timer_at) WHERE timer_at IS NOT NULL`,
  `CREATE INDEX user_id_updated_at_id_idx ON chat (user_id, updated_at DESC, id)`,
  `CREATE INDEX user_id_timer_at_idx ON chat (user_id, timer_at) WHERE timer_at IS NOT NULL`,
  `CREATE INDEX user_id_folder_unread_idx ON chat (user_id, folder_id, archived, updated_at, last_read_at, id)`,
  `CREATE INDEX chat_message_chat_role_done_idx ON chat_message (chat_id, role, done)`,
]

/** Indexes that every release has, on tables that differ between them. */
const indexes = [
  `CREATE INDEX folder_id_idx ON chat (folder_id)`,
  `CREATE INDEX user_id_pinned_idx ON chat (user_id, pinned)`,
  `CREATE INDEX user_id_archived_idx ON chat (user_id, archived)`,
  `CREATE INDEX updated_at_user_id_idx ON chat (updated_at, user_id)`,
  `CREATE INDEX folder_id_user_id_idx ON chat (folder_id, user_id)`,
  `CREATE INDEX user_id_idx ON tag (user_id)`,
  `CREATE INDEX is_global_idx ON function (is_global)`,
  `CREATE INDEX idx_oauth_session_user_id ON oauth_session (user_id)`,
  `CREATE INDEX idx_oauth_session_expires_at ON oauth_session (expires_at)`,
  `CREATE INDEX idx_oauth_session_user_provider ON oauth_session (user_id, provider)`,
]

/** Every release we can make, oldest first. */
export const shapes: Readonly<Record<Version, Shape>> = {
  '0.6.31': {ddl: [...steady, ...peewee, ...only0631, ...indexes], revision: '38d63c18f30f'},
  '0.8.12': {ddl: [...steady, ...peewee, ...since08, ...only0812, ...indexes], revision: 'b2c3d4e5f6a7'},
  '0.10.2': {ddl: [...steady, ...since08, ...since010, ...indexes], revision: '42e2978c7933'},
  '0.11': {ddl: [...steady, ...since08, ...since010, ...indexes, ...since011], revision: 'd4c1a8e37b62'},
}

/** The migrations of the time before Alembic; upgraded files keep their list for ever. */
export const migrations = [
  '001_initial_schema',
  '002_add_local_sharing',
  '003_add_auth_api_key',
  '004_add_archived',
  '005_add_updated_at',
  '006_migrate_timestamps_and_charfields',
  '007_add_user_last_active_at',
  '008_add_memory',
  '009_add_models',
  '010_migrate_modelfiles_to_models',
  '011_add_user_settings',
  '012_add_tools',
  '013_add_user_info',
  '014_add_files',
  '015_add_functions',
  '016_add_valves_and_is_active',
  '017_add_user_oauth_sub',
  '018_add_function_is_global',
]
