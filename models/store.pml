/*
 * store.pml: commits, the ring of the log, checkpoints, the quarantine of sectors, a reader, power
 * loss, the death of the process, failed syncs and recovery. scripts/check-models tries every order
 * of steps.
 *
 * A store of two keys that every put sets together. The first key's value is a record in a sector of
 * its own; the second stands for all else that a commit changes. Values are numbers of commits. The
 * old sector is free then, once nobody needs it. A sector, a page of the index, a copy of the header
 * and a frame of the log are one block of the disk each: what was written (cached) and what is on the
 * medium, apart while it is dirty. At a loss of power each dirty block has landed, is lost, or is
 * torn; one that is written over while it is dirty may have landed before. To write over a block what
 * it holds already cannot tear it. A failed sync leaves what it did not write lost or torn, and clean.
 *
 * What must hold (the assertions):
 *   a reader finds the record that its entry led to, for as long as its section lasts;
 *   a recovery finds a whole header, the page that it names, and every record that it needs;
 *   it ends at the state of a commit that was made, no earlier than the last one that was said to be
 *   synced, with all that the commit changed;
 *   after the death of the process alone it ends at the very last commit.
 *
 * A step names the function that it stands for. It is one hold of the writer lock, one atomic store,
 * or one call of the operating system; between any two of them anything else may happen. All are
 * alternatives of one loop and keep their places in variables, so that a crash can come between any
 * two. Crashes between log and apply, or while the reader is inside, are left out: they leave the same
 * disk as those that come once the commit has been applied, or the reader has left.
 *
 * Bugs are planted by -DBUG_name; names are those of src/planted.h where it has the same bug.
 */

#ifndef COMMITS
#define COMMITS 4
#endif
#ifndef CRASHES
#define CRASHES 1
#endif
#ifndef READERS
#define READERS 0 /* or 1: what one waits for is the same beside others */
#endif
#ifndef FAILURES
#define FAILURES 0 /* syncs that fail */
#endif
#ifndef FRAMES
#define FRAMES 4 /* of the ring */
#endif
#define SECTORS 3
#define NONE 3   /* no sector: the key is absent */
#define PLACES 2 /* for the page */
#define EMPTY 255
#define TORN 15 /* the value of a record that is torn */

/* What a commit does: put a value that the frame holds; put one that it refers to; or it is the
 * collector's, which moves the record. */
#define PUT 0
#define REFER 1
#define MOVE 2
#define RESTART 3
#ifndef OTHER
#define OTHER PUT /* which of them there is besides puts */
#endif

/* ---- blocks: cached, and on the medium. */
typedef frame_t { byte id, previous, sector, kind; bit half, torn };
typedef header_t { byte sequence, commit, place, sum, offset, chain; bit torn };
frame_t frame[FRAMES], frame_medium[FRAMES];
header_t header[2], header_medium[2], no_header;
byte page[PLACES], page_medium[PLACES];       /* second * 4 + entry: its checksum too */
byte record[SECTORS], record_medium[SECTORS]; /* values */
bit frame_dirty[FRAMES], header_dirty[2], page_dirty[PLACES], record_dirty[SECTORS];

/* ---- memory: gone with the process. */
bit failed;             /* db->failed */
bit opening;            /* fkv_open has not returned */
bit stale;              /* frames behind the end of the log wait for what they refer to */
bit data_unsynced;      /* log->data_unsynced */
byte commit;            /* db->commit */
byte entry, second;     /* the index: the sector of the first key's record, the other's value */
byte head, chain, start; /* log->head, log->start */
mtype = { FREE, USED, FREED, UNCERTAIN, WAITING };
mtype state[SECTORS];   /* free, in the queue, and the three kinds of quarantine */
bit buffered[SECTORS];  /* its record is in a tail buffer */
byte buffer[SECTORS];
bit waits[SECTORS];     /* for the reader: the grace period */
byte stage;             /* struct checkpoint, and what it noted at its beginning */
byte noted_commit, noted_entry, noted_second, noted_head, noted_chain, noted_place;
byte root, copy, sequence; /* pages->root; db->header_copy; db->header.sequence */
bit inside;                /* the reader is in a section */
byte seen, seen_value;

/* ---- what the outside knows. */
byte value_of[COMMITS + 1]; /* what each commit left */
byte lives;                 /* random numbers of restart frames: each is another */
byte life;                  /* that of the last restart frame: part of all checksums after it */
byte made;                  /* commits in the log when the process died, or that returned */
byte acknowledged;          /* the last one that was said to be synced */
byte crashes, failures;
byte i, j; /* for loops; 0 between steps */

/* The checksum of a frame: another for other contents. */
#define ID(kind, n) (life * 64 + (kind) * 16 + (n))
#define used ((head + FRAMES - start) % FRAMES)
#define room (used < FRAMES - 1)
#define value_in(s) (buffered[s] -> buffer[s] : record[s])

/* ---------------------------------------------------------------- the disk */

inline copy_frame(to, from)
{
    to.id = from.id; to.previous = from.previous; to.sector = from.sector; to.kind = from.kind;
    to.half = from.half; to.torn = from.torn
}

inline clear_frame(f)
{
    f.id = EMPTY; f.previous = 0; f.sector = 0; f.kind = 0; f.half = 0; f.torn = 0
}

inline copy_header(to, from)
{
    to.sequence = from.sequence; to.commit = from.commit; to.place = from.place;
    to.sum = from.sum; to.offset = from.offset; to.chain = from.chain; to.torn = from.torn
}

/* A frame at head: log_begin, log_end. */
inline write_frame(what, number, where)
{
    if
    :: frame_dirty[head] -> copy_frame(frame_medium[head], frame[head])
    :: true
    fi;
    frame[head].id = ID(what, number); frame[head].previous = chain;
    frame[head].sector = where; frame[head].kind = what;
#ifdef BUG_HALF_BATCH_LOGGED
    frame[head].half = 1;
#endif
    frame[head].torn = 0;
    frame_dirty[head] = 1;
    chain = frame[head].id;
    head = (head + 1) % FRAMES
}

inline write_record(s, what)
{
    if
    :: record_dirty[s] -> record_medium[s] = record[s]
    :: true
    fi;
    record[s] = what; record_dirty[s] = 1
}

/* tail_flush, tail_flush_open */
inline flush(s)
{
    write_record(s, buffer[s]);
    buffered[s] = 0; buffer[s] = 0
}

/* All that is dirty in the store's file has landed: fdatasync. */
inline land_file()
{
    for (i : 0 .. SECTORS - 1) {
        if :: record_dirty[i] -> record_medium[i] = record[i]; record_dirty[i] = 0 :: else fi
    }
    for (i : 0 .. PLACES - 1) {
        if :: page_dirty[i] -> page_medium[i] = page[i]; page_dirty[i] = 0 :: else fi
    }
    for (i : 0 .. 1) {
        if
        :: header_dirty[i] -> copy_header(header_medium[i], header[i]); header_dirty[i] = 0
        :: else
        fi
    }
    i = 0
}

inline land_log()
{
    for (i : 0 .. FRAMES - 1) {
        if :: frame_dirty[i] -> copy_frame(frame_medium[i], frame[i]); frame_dirty[i] = 0 :: else fi
    }
    i = 0
}

/* Of what is torn only that counts; where it is not looked at, what was to be written does too. */
inline tear_frame(n)
{
#ifdef BUG_NO_FRAME_CHECKSUM
    copy_frame(frame_medium[n], frame[n]); frame_medium[n].torn = 1
#else
    clear_frame(frame_medium[n])
#endif
}

inline tear_header(n)
{
    copy_header(header_medium[n], no_header); header_medium[n].torn = 1
}

/* Each dirty block has landed, is lost or is torn; and is taken for clean. */
inline lose_log()
{
    for (i : 0 .. FRAMES - 1) {
        if
        :: frame_dirty[i] -> copy_frame(frame_medium[i], frame[i])
        :: frame_dirty[i] && frame_medium[i].id != frame[i].id ->
            tear_frame(i)
        :: true
        fi;
        frame_dirty[i] = 0
    }
    i = 0
}

inline lose_file()
{
    for (i : 0 .. 1) {
        if
        :: header_dirty[i] -> copy_header(header_medium[i], header[i])
        :: header_dirty[i] -> tear_header(i)
        :: true
        fi;
        header_dirty[i] = 0
    }
    for (i : 0 .. PLACES - 1) {
        if
        :: page_dirty[i] -> page_medium[i] = page[i]
        :: page_dirty[i] && page_medium[i] != page[i] -> page_medium[i] = EMPTY
        :: true
        fi;
        page_dirty[i] = 0
    }
    for (i : 0 .. SECTORS - 1) {
        if
        :: record_dirty[i] -> record_medium[i] = record[i]
        :: record_dirty[i] && record_medium[i] != record[i] -> record_medium[i] = TORN
        :: true
        fi;
        record_dirty[i] = 0
    }
    i = 0
}

inline forget_cache()
{
    for (i : 0 .. FRAMES - 1) { copy_frame(frame[i], frame_medium[i]) }
    for (i : 0 .. 1) { copy_header(header[i], header_medium[i]) }
    for (i : 0 .. PLACES - 1) { page[i] = page_medium[i] }
    for (i : 0 .. SECTORS - 1) { record[i] = record_medium[i] }
    i = 0
}

#ifdef BUG_SYNC_AGAIN
#define FAILED 0
#else
#define FAILED 1
#endif

/* sync_store */
inline sync_file()
{
    if
    :: land_file(); stage++
    :: failures < FAILURES -> failures++; lose_file(); failed = FAILED
    fi
}

/*
 * A checkpoint is over, or an opening: what is told apart no more is made equal, so that fewer states
 * are to be tried. Of sequences only the order counts; free places may hold anything.
 */
inline rest()
{
    noted_commit = 0; noted_entry = 0; noted_second = 0; noted_head = 0; noted_chain = 0;
    noted_place = 0;
#ifndef BUG_SKIP_HEADER_SYNC
    header[1 - copy].sequence = 1; header_medium[1 - copy].sequence = 1;
    header[copy].sequence = 2; header_medium[copy].sequence = 2;
    sequence = 2;
#endif
    page[1 - root] = EMPTY; page_medium[1 - root] = EMPTY; page_dirty[1 - root] = 0;
    stage = 0
}

/* Its bytes may be anything from now on: a hole, say. */
inline free_sector(s)
{
    state[s] = FREE;
    record[s] = 0; record_medium[s] = 0; record_dirty[s] = 0
}

/* ---------------------------------------------------------------- opening */

inline forget_memory()
{
    failed = 0; stage = 0; stale = 0; data_unsynced = 0;
    for (i : 0 .. SECTORS - 1) { state[i] = FREE; buffered[i] = 0; buffer[i] = 0; waits[i] = 0 }
    i = 0
}

#ifdef BUG_NO_FRAME_CHECKSUM
#define whole(f) (f.id != EMPTY)
#else
#define whole(f) (f.id != EMPTY && !f.torn)
#endif
#ifdef BUG_NO_CHAIN
#define follows(f) true
#else
#define follows(f) (f.previous == chain)
#endif
/* operation_is_backed */
#ifdef BUG_NO_REFER_CHECKSUM
#define backed(f) true
#else
#define backed(f) (f.kind != REFER || value_in(f.sector) == f.id % 16)
#endif

/* header_choose. */
inline choose_header()
{
    assert(!header[0].torn || !header[1].torn);
    if
    :: header[0].torn || (!header[1].torn && header[1].sequence > header[0].sequence) -> copy = 1
    :: else -> copy = 0
    fi
}

/* start: the copy that was written last may be whole in the cache only. If the other is whole too, the
 * opening writes this one first, with the sequence that it has. */
inline doubt_last_copy()
{
    if
#ifndef BUG_OTHER_COPY_FIRST
    :: !header[1 - copy].torn -> copy = 1 - copy; sequence--
#endif
    :: else
    fi
}

/* use_header, then the trees: the page's checksum is held by its parent. */
inline load_checkpoint()
{
    sequence = header[copy].sequence; commit = header[copy].commit; root = header[copy].place;
    start = header[copy].offset; head = start; chain = header[copy].chain;
    assert(page[root] == header[copy].sum);
    entry = page[root] % 4;
    second = page[root] / 4;
    if
    :: entry != NONE -> state[entry] = USED; assert(record[entry] == second)
    :: else
    fi
}

/* replay_frame */
inline replay_frame(f)
{
    commit = commit + 1;
    if
    :: f.kind == MOVE -> j = value_in(entry)
    :: f.kind == PUT -> j = (f.torn -> TORN : f.id % 16)
    :: f.kind == REFER -> j = value_in(f.sector)
    fi;
    if :: entry != NONE -> state[entry] = FREED :: else fi;
    entry = f.sector;
    state[entry] = USED; buffered[entry] = 1; buffer[entry] = j;
#ifndef BUG_HALF_BATCH_REPLAYED
    if :: f.kind != MOVE && !f.half -> second = j :: else fi;
#endif
#ifndef BUG_REFER_NOT_AGAIN
    if :: f.kind == REFER -> write_record(entry, j) :: else fi;
#endif
    j = 0
}

/* log_next; log_write_again. */
inline replay()
{
    i = 0;
    do
    :: i < FRAMES && whole(frame[head]) && follows(frame[head]) && backed(frame[head]) ->
        chain = frame[head].id;
        life = chain / 64;
        if
        :: frame[head].kind == RESTART
        :: else -> replay_frame(frame[head])
        fi;
#ifndef BUG_NO_WRITE_AGAIN
        frame_dirty[head] = frame[head].id != frame_medium[head].id;
#endif
        head = (head + 1) % FRAMES;
        i++
    :: else -> break
    od;
    stale = whole(frame[head]) && follows(frame[head]);
    i = 0
}

inline recover(power)
{
    forget_memory();
    choose_header();
    load_checkpoint();
    replay();
    assert(commit >= acknowledged && commit <= made);
    assert(power || commit == made);
    assert(second == value_of[commit]);
    assert(entry == NONE || value_in(entry) == second);
    made = commit;
    for (i : commit + 1 .. COMMITS) { value_of[i] = 0 }
    i = 0;
    noted_commit = header[copy].commit; noted_place = root;
    noted_entry = page[root] % 4; noted_second = page[root] / 4;
    noted_head = header[copy].offset; noted_chain = header[copy].chain;
    doubt_last_copy();
    opening = 1;
#ifdef BUG_NO_HEADER_AT_OPENING
    stage = 8
#else
    stage = 4
#endif
}

/* ---------------------------------------------------------------- the store */

#ifdef BUG_REUSE_SECTOR_EARLY
#define AFTER_DEATH FREE
#else
#define AFTER_DEATH FREED
#endif
#ifdef BUG_REUSE_PAGE_EARLY
#define free_place root
#else
#define free_place (1 - root)
#endif

init
{
    d_step {
        for (i : 0 .. FRAMES - 1) { frame[i].id = EMPTY; frame_medium[i].id = EMPTY }
        for (i : 0 .. 1) {
            header[i].sequence = 1; header[i].sum = NONE;
            copy_header(header_medium[i], header[i])
        }
        page[0] = NONE; page_medium[0] = NONE;
        for (i : 0 .. SECTORS - 1) { state[i] = FREE }
        entry = NONE; sequence = 1; i = 0
    }
end:
    do
    /* ---- commit.c: store_and_log, apply; collect.c. That there is a sector and room in the log was
     * made sure of before. */
    :: atomic {
        !failed && !opening && commit < COMMITS && room &&
            (state[0] == FREE || state[1] == FREE || state[2] == FREE) ->
        if
        :: i = PUT
        :: OTHER == REFER -> i = REFER
        :: OTHER == MOVE && entry != NONE -> i = MOVE
        fi;
        if
        :: state[0] == FREE -> j = 0
        :: else -> if :: state[1] == FREE -> j = 1 :: else -> j = 2 fi
        fi;
        state[j] = USED; buffered[j] = 1;
        buffer[j] = (i == MOVE -> value_in(entry) : commit + 1);
        if
        :: i == REFER -> flush(j); data_unsynced = 1
        :: else
        fi;
        write_frame(i, commit + 1, j);
        commit++;
        made = commit;
        if :: entry != NONE -> state[entry] = AFTER_DEATH :: else fi;
        entry = j;
        if :: i != MOVE -> second = commit :: else fi;
        value_of[commit] = second;
        i = 0; j = 0
    }
    /* ---- tail.c: tail_flusher writes a full sector when it comes to it. */
    :: atomic { !opening && entry != NONE && buffered[entry] -> flush(entry) }
    /* ---- log.c: sync_files; the caller's commit is said to be durable. What frames refer to comes
     * first. */
    :: atomic {
        !failed && !opening && data_unsynced ->
        data_unsynced = 0;
#ifndef BUG_SKIP_DATA_SYNC
        if
        :: land_file()
        :: failures < FAILURES -> failures++; lose_file(); failed = FAILED
        fi
#endif
    }
    :: atomic {
        !failed && !opening && !data_unsynced && acknowledged < commit ->
        if
        ::
#ifndef BUG_SKIP_LOG_SYNC
            land_log();
#endif
            acknowledged = commit
        :: failures < FAILURES -> failures++; lose_log(); failed = FAILED
        fi
    }
    /* ---- checkpoint.c: begin */
    :: atomic {
        stage == 0 && !failed && !opening &&
            (commit != header[copy].commit || !room) ->
        noted_commit = commit; noted_entry = entry; noted_second = second; noted_head = head;
        noted_chain = chain; noted_place = free_place;
        for (i : 0 .. SECTORS - 1) { if :: state[i] == FREED -> state[i] = UNCERTAIN :: else fi }
        i = 0;
#ifdef BUG_RELEASE_LOG_EARLY
        start = head;
#endif
        stage = 1
    }
    /* ---- write_values: sectors that were full before the beginning, and the open one's part. */
    :: atomic {
        stage == 1 && !failed ->
        for (j : 0 .. SECTORS - 1) {
            if
#ifndef BUG_SKIP_TAIL_FLUSH
            :: j == noted_entry && buffered[j] -> flush(j)
#endif
            :: j != noted_entry && state[j] == UNCERTAIN && buffered[j] -> flush(j)
            :: else
            fi
        }
        j = 0;
        stage = 2
    }
    /* ---- write_pages: pages_capture takes the page as it was at the beginning. */
    :: atomic {
        stage == 2 && !failed ->
#ifdef BUG_NO_COPY
        noted_entry = entry; noted_second = second;
#endif
        if
        :: page_dirty[noted_place] -> page_medium[noted_place] = page[noted_place]
        :: true
        fi;
        page[noted_place] = noted_second * 4 + noted_entry; page_dirty[noted_place] = 1;
        stage = 3
    }
    /* ---- sync_store, then checkpoint_write_header: first the copy that does not count, then the
     * other, each with a sync. An opening (start) comes here too. */
    :: atomic {
        (stage == 3 || stage == 5 || stage == 7) && !failed ->
        if
#ifdef BUG_SKIP_PAGES_SYNC
        :: stage == 3 -> stage++
#endif
#ifdef BUG_SKIP_HEADER_SYNC
        :: stage != 3 -> stage++
#endif
        :: else -> sync_file()
        fi
    }
    :: atomic {
        (stage == 4 || stage == 6) && !failed ->
        copy = 1 - copy;
        sequence++;
        header[copy].sequence = sequence; header[copy].commit = noted_commit;
        header[copy].place = noted_place; header[copy].sum = noted_second * 4 + noted_entry;
        header[copy].offset = noted_head; header[copy].chain = noted_chain;
        header[copy].torn = 0;
        header_dirty[copy] = 1;
        stage++
    }
    /* ---- open.c: log_restart, if the log has room. Durable if there are frames that it cuts off and
     * that could come to be backed. */
    :: atomic {
        stage == 8 && opening && !failed ->
        if
#ifndef BUG_NO_RESTART
        :: room ->
            lives++;
            life = lives;
            write_frame(RESTART, commit, NONE)
#endif
        :: else
        fi;
        stage++
    }
    :: atomic {
        stage == 9 && !failed ->
#ifndef BUG_RESTART_UNSYNCED
        if
        :: stale && failures < FAILURES -> failures++; lose_log(); failed = FAILED
        :: stale -> land_log()
        :: !stale
        fi;
#endif
        opening = 0; stale = 0;
        rest();
        for (i : 0 .. SECTORS - 1) { if :: state[i] == FREE -> free_sector(i) :: else fi }
        i = 0
    }
    /* ---- write_header, the rest: log_release, pages_checkpoint_done, sectors_checkpoint_done, and
     * call_rcu begins a grace period. */
    :: atomic {
        stage == 8 && !opening && !failed ->
        start = noted_head;
        root = noted_place;
        for (i : 0 .. SECTORS - 1) {
            if
            :: state[i] == UNCERTAIN ->
                state[i] = WAITING;
#ifndef BUG_NO_GRACE
                waits[i] = inside
#endif
            :: else
            fi
        }
        i = 0;
        rest()
    }
    /* ---- reclaim.c: release_waiting; sectors_reclaim. */
    :: atomic { state[0] == WAITING && !waits[0] -> free_sector(0) }
    :: atomic { state[1] == WAITING && !waits[1] -> free_sector(1) }
    :: atomic { state[2] == WAITING && !waits[2] -> free_sector(2) }

#if READERS
    /* ---- read.c: a section: the entry, the record, and at its end the record is still there. */
    :: atomic {
        !inside && !opening && entry != NONE ->
        inside = 1; seen = entry; seen_value = value_in(entry)
    }
    :: atomic {
        inside ->
        assert(value_in(seen) == seen_value);
        inside = 0; seen = 0; seen_value = 0;
        for (i : 0 .. SECTORS - 1) { waits[i] = 0 }
        i = 0
    }
#endif
    /* ---- the power fails; or the process dies. open.c: store_open. */
    :: atomic {
        crashes < CRASHES && !inside ->
        crashes++;
        lose_log(); lose_file(); forget_cache(); recover(1)
    }
    :: atomic { crashes < CRASHES && !inside -> crashes++; recover(0) }
    od
}
