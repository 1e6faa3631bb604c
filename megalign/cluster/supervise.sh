# Sourced by the job scripts of `megalign submit`: starts the processes of a step, passes the request to stop on to them,
# waits, and says whether Slurm is to run the job again.
#
# Exit codes of the processes: 0 done; 75 stopped on request, saved; 2, 3, 5 settings, data, training: starting again would
# meet it again; 6 another process took the run over. Anything else (a crash, a lost node, a failed save) is tried again.

# One line in the records of the step: time, submission, link, job, restart, host, event, checkpoints, detail.
record() {
    printf '%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n' "$(date +%s)" "$SUBMISSION" "$LINK" "$SLURM_JOB_ID" \
        "${SLURM_RESTART_COUNT:-0}" "${SLURMD_NODENAME:-$HOSTNAME}" "$1" "$(checkpoints)" "${2:-}" >>"$RECORDS"
    echo "[$(date '+%F %T')] $NAME: job $SLURM_JOB_ID, restart ${SLURM_RESTART_COUNT:-0}: $1 ${2:-}"
}

# The newest checkpoint of every stage, as the pointers say.
checkpoints() {
    local pointer found=""
    for pointer in "$OUTPUT"/checkpoints/*/latest; do
        [[ -f $pointer ]] && found+="$(basename "$(dirname "$pointer")")/$(<"$pointer") "
    done
    echo "${found:-none}"
}

# How many attempts of this submission in a row began with the checkpoints that are there now.
attempts_in_vain() {
    [[ -f $RECORDS ]] || { echo 0; return; }
    awk -F '\t' -v submission="$SUBMISSION" -v now="$(checkpoints)" '
        $2 == submission && $7 == "begin" { count = $8 == now ? count + 1 : 0 }
        END { print count + 0 }' "$RECORDS"
}

# How an earlier job of this chain ended.
ended_before() {
    [[ -f $RECORDS ]] || return 0
    awk -F '\t' -v submission="$SUBMISSION" -v link="$LINK" '
        $2 == submission && $3 < link && $7 != "superseded" { event = $7; detail = $9 }
        END { if (event == "done" || event == "failed" || event == "gave-up") print event, detail }' "$RECORDS"
}

give_up() {
    record gave-up "$1 restarts without a new checkpoint (max_stalls $MAX_STALLS)"
    exit "$2"
}

on_signal() {
    asked="${asked:-$1}"
    [[ -n ${step_pid:-} ]] && kill -USR1 "$step_pid" 2>/dev/null  # srun passes it on to all processes of the step
}

# Whether Slurm itself is ending the job: scancel, or a requeue of its own. A megalign cancel leaves a file.
ending() {
    [[ -e $FOLDER/slurm/cancelled-$SUBMISSION ]] && return 0
    [[ ${asked:-} == TERM && $(known) =~ JobState=(COMPLETING|CANCELLED|PENDING|REQUEUED) ]]
}

# Whether the job was queued again without this script having noticed: it is on a node that lost touch.
superseded() {
    [[ -z ${asked:-} && $(known) =~ Restarts=([0-9]+) && ${BASH_REMATCH[1]} != "${SLURM_RESTART_COUNT:-0}" ]]
}

known() {
    scontrol show job -o "$SLURM_JOB_ID" 2>/dev/null
}

requeue() {
    local try
    for try in {1..60}; do  # slurmctld may be away for some minutes
        if scontrol requeue "$SLURM_JOB_ID"; then
            # Slurm ends this script now; leaving by itself it might have its exit code taken for that of the next attempt.
            trap 'exit 75' TERM
            sleep 20 &
            wait $!
            return 0
        fi
        sleep 5
    done
    return 1
}

supervise() {
    NAME=$1 OUTPUT=$2
    local marker=$3 code before
    shift 3
    RECORDS=$FOLDER/slurm/records/$NAME.tsv
    mkdir -p "$FOLDER/slurm/records" "$FOLDER/logs"
    exec >>"$FOLDER/logs/$NAME.log" 2>&1
    asked="" step_pid=""
    trap 'on_signal USR1' USR1
    trap 'on_signal TERM' TERM

    if [[ $marker != - && -e $marker ]]; then record "done" "before"; exit 0; fi
    before=$(ended_before)
    case $before in
        done*) exit 0 ;;
        ?*) echo "an earlier job of this chain: $before"; exit 1 ;;
    esac
    if (( $(attempts_in_vain) > MAX_STALLS )); then give_up "$MAX_STALLS" 1; fi

    # The processes say that they are done: srun may leave with 0 when it has lost a node.
    export MEGALIGN_FINISHED=$FOLDER/slurm/records/$NAME.finished-$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}
    rm -f "$MEGALIGN_FINISHED"
    record begin
    "${LAUNCH[@]}" "${COMMAND[@]}" "$@" &
    step_pid=$!
    [[ -n $asked ]] && on_signal "$asked"  # it came before there was anybody to tell
    while kill -0 "$step_pid" 2>/dev/null; do wait "$step_pid"; done  # a trapped signal interrupts wait
    wait "$step_pid"
    code=$?
    step_pid=""
    (( code == 0 )) && [[ ! -e $MEGALIGN_FINISHED ]] && code=1
    rm -f "$MEGALIGN_FINISHED"
    if [[ -n ${MEGALIGN_NODE_LOCAL:-} ]]; then
        srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --ntasks="$SLURM_JOB_NUM_NODES" rm -rf -- "$MEGALIGN_NODE_LOCAL"
    fi

    case $code in
        0)
            if [[ $marker != - ]]; then
                mkdir -p "$(dirname "$marker")"
                printf '{\n  "step": "%s"\n}\n' "$NAME" >"$marker.$SLURM_JOB_ID.tmp" && mv "$marker.$SLURM_JOB_ID.tmp" "$marker"
            fi
            record "done"
            exit 0 ;;
        2 | 3 | 5)
            record failed "exit code $code"
            exit "$code" ;;
        6)
            record superseded "exit code $code"
            exit "$code" ;;
    esac
    if superseded; then record superseded "exit code $code"; exit "$code"; fi
    if ending; then record stopped "exit code $code, ended by Slurm"; exit "$code"; fi
    if (( $(attempts_in_vain) > MAX_STALLS )); then give_up "$MAX_STALLS" "$code"; fi
    record stopped "exit code $code${asked:+ after SIG$asked}"
    if [[ $ON_STOP == requeue ]]; then requeue || record failed "scontrol requeue failed"; fi
    exit "$code"
}
