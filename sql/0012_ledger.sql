-- A cut writes what it has decided before it writes, last of all, the job that it is.

set local role sync_owner;

alter table sync_metadata.conflict_log
  alter constraint conflict_log_job_id_fkey deferrable initially deferred;

reset role;
