/*
 * sync.pml: group commit, log_sync of src/log.c. Threads commit and sync, sleep on the word
 * sync_round and are woken. A sync may fail: what it was to write is lost, and the system takes it for
 * written, so that the next one says that all is well. Checked exhaustively by scripts/check-models.
 *
 * What must hold: nobody is told that all is well before its commit is durable; nobody sleeps for ever
 * (no invalid end state); two syncs are never under way at once.
 *
 * gather only waits, for a time that ends: it is left out, and so is all that only it reads. Each
 * step is one atomic operation or one call of the operating system. The futex: the kernel compares
 * the word and puts the caller to sleep in one step; a wake-up wakes all that sleep then.
 *
 * Bugs: BUG_WAKE_EARLY looks for sleepers before the word is changed; BUG_TARGET_LATE takes commits
 * for durable that were written during the sync; BUG_NO_COMPARE sleeps without comparing the word;
 * BUG_SYNC_AGAIN takes no note of a sync that failed; BUG_FAILED_LATE does so after its round.
 */
#ifndef THREADS
#define THREADS 3
#endif
#ifndef COMMITS
#define COMMITS 1 /* of each */
#endif
#ifndef FAILURES
#define FAILURES 0 /* syncs that fail */
#endif

byte round;     /* log->sync_round */
byte sleepers;  /* log->sync_sleepers */
byte written;   /* log->written_commit */
byte durable;   /* log->durable_commit */
byte medium;    /* commits that are on the medium, and none before them is lost */
bit failed;     /* log->sync_failed */
bit lost;       /* something of the log is, and what comes after it leads nowhere */
byte failures;
byte under_way; /* syncs */
bit asleep[THREADS];
byte i;

/* sync_for_all */
inline sync_for_all()
{
    under_way++;
    assert(under_way == 1);
    error = 0;
#ifndef BUG_TARGET_LATE
    target = written;
#endif
    if /* sync_files: what is written before the call; more may land, which nobody counts on */
    :: atomic {
#ifdef BUG_TARGET_LATE
        medium = written
    };
    target = written;
#else
        if :: !lost -> medium = target :: else fi
    }
#endif
    :: atomic { failures < FAILURES -> failures++; lost = 1; error = 1 }
    fi;
#ifdef BUG_SYNC_AGAIN
    durable = target;
#else
    if
#ifndef BUG_FAILED_LATE
    :: error -> failed = 1
#endif
    :: !error -> durable = target
    :: else
    fi;
#endif
    under_way--;
#ifdef BUG_WAKE_EARLY
    wake = sleepers;
    round++;
#else
    round++;
    wake = sleepers;
#endif
#ifdef BUG_FAILED_LATE
    failed = failed || error;
#endif
    if
    :: wake -> d_step { for (i : 0 .. THREADS - 1) { asleep[i] = 0 } i = 0 }
    :: else
    fi
}

/* sleep_through */
inline sleep_through()
{
    sleepers++;
#ifdef BUG_NO_COMPARE
    asleep[me] = 1;
#else
    atomic { if :: round == seen -> asleep[me] = 1 :: else fi }
#endif
    !asleep[me];
    sleepers--
}

proctype caller(byte me)
{
    byte mine, seen, target, wake, n;
    bit error;
    do
    :: n < COMMITS && !failed -> /* store_writable */
        n++;
        atomic { written++; mine = written } /* log_end, under the writer lock */
        do /* log_sync */
        :: true ->
            seen = round;
            if
            :: durable >= mine -> assert(medium >= mine); break
            :: else
            fi;
            if
            :: failed -> break /* FKV_FAILED */
            :: else
            fi;
            if
            :: seen % 2 -> sleep_through()
            :: else ->
                atomic {
                    if
                    :: round == seen -> round++; seen = 255 /* compare and exchange */
                    :: else
                    fi
                }
                if
                :: seen == 255 ->
                    sync_for_all();
                    if
                    :: error -> break /* FKV_IO */
                    :: else
                    fi
                :: else
                fi
            fi
        od;
        mine = 0;
        d_step { seen = 0; target = 0; wake = 0; error = 0 }
    :: else -> break
    od
}

init
{
    atomic { for (i : 0 .. THREADS - 1) { run caller(i) } i = 0 }
}
