/* What the load generator does where there are two nodes (part of load.c).
 *
 *   watch   connects, says so, and then answers each line "mark" with what it has counted since the one before: for
 *           load that somebody else makes (an app's own code);
 *   return  connects to `port`, says so; at a line "go N" all come back to `other_port`, N of them under way at a time, each with
 *           its position, and each must hear what it missed: sequence numbers 0, 1, 2, … without gap or repetition. */

struct place {
    char epoch[64];
    uint64_t offset;
    uint32_t next; /* sequence number that it must hear next */
    double done;   /* when it had heard `missed` of them */
};

static uint64_t twice, not_recovered;
static int complete;

static size_t since(char *out, size_t size, int i) {
    struct place *place = conns[i].place;
    if (!returned || !place) return 0;
    return (size_t)snprintf(out, size, ",\"since\":{\"epoch\":\"%s\",\"offset\":%llu}", place->epoch, (unsigned long long)place->offset);
}

static void heard_seq(struct conn *c, uint32_t seq) {
    struct place *place = c->place;
    if (seq < place->next) {
        twice++;
        return;
    }
    if (seq > place->next) disorder++;
    place->next = seq + 1;
    if (!place->done && place->next >= (uint32_t)spec.missed) place->done = now(), complete++;
}

/* All of the generator's texts in a message, one after the other. */
static void heard_again(struct conn *c, const uint8_t *payload, size_t n) {
    const uint8_t *end = payload + n, *tag;
    for (const uint8_t *p = payload; (tag = memmem(p, (size_t)(end - p), "~P", 2)) && end - tag >= TAG; p = tag + TAG) {
        uint32_t seq = 0;
        for (int i = 8; i < 17; i++) seq = seq * 10 + (uint32_t)(tag[i] - '0');
        heard_seq(c, seq);
    }
}

/* The position in the answer to a subscription; with it, when the client has come back, what it missed. */
static void took_place(struct conn *c, const uint8_t *payload, size_t n) {
    const uint8_t *epoch = memmem(payload, n, "\"epoch\":\"", 9);
    const uint8_t *offset = memmem(payload, n, "\"offset\":", 9);
    if (!epoch || !offset) return;
    size_t length = strcspn((const char *)epoch + 9, "\"");
    if (length >= sizeof c->place->epoch) die("an epoch of %zu characters", length);
    if (returned && !memmem(payload, n, "\"recovered\":true", 16)) not_recovered++;
    memcpy(c->place->epoch, epoch + 9, length);
    c->place->epoch[length] = 0;
    c->place->offset = strtoull((const char *)offset + 9, NULL, 10);
    if (returned) heard_again(c, payload, n);
}

static void reset_all(void);

static void reconnect_all(int concurrency) {
    reset_all();
    for (int i = 0; i < spec.connections; i++) {
        struct conn *c = &conns[i];
        free(c->stash);
        *c = (struct conn){.publisher = -1, .place = c->place};
    }
    spec.concurrency = concurrency;
    returned = true;
    opened = joined = closed = 0;
}

static double done_at(const double *times, int count, double q) { return count ? times[(int)(q * (count - 1))] : 0; }

static int by_time(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void returned_at(double start, double joined_s) {
    double *times = calloc((size_t)spec.connections, sizeof *times);
    int count = 0;
    for (int i = 0; i < spec.connections; i++)
        if (conns[i].place->done) times[count++] = conns[i].place->done - start;
    qsort(times, (size_t)count, sizeof *times, by_time);
    printf("{\"seconds\": %.3f, \"joined_s\": %.3f, \"p50_s\": %.3f, \"p99_s\": %.3f, ", done_at(times, count, 1), joined_s,
           done_at(times, count, 0.5), done_at(times, count, 0.99));
    free(times);
}

static void come_back_now(int concurrency) {
    double start = now(), cpu = own_cpu(), server = cpu_of(spec.pids[spec.pid_count - 1]);
    reconnect_all(concurrency);
    double joined_s = connect_all();
    while (complete < spec.connections && now() - start < spec.seconds) turn(20);
    double took = now() - start;
    returned_at(start, joined_s);
    printf("\"incomplete\": %d, \"twice\": %llu, \"disorder\": %llu, \"not_recovered\": %llu, \"bytes\": %llu, "
           "\"generator_cpu\": %.1f, \"server_cpu\": %.1f}\n",
           spec.connections - complete, (unsigned long long)twice, (unsigned long long)disorder, (unsigned long long)not_recovered,
           (unsigned long long)bytes_in, 100 * (own_cpu() - cpu) / took, 100 * (cpu_of(spec.pids[spec.pid_count - 1]) - server) / took);
}

/* All go away by themselves, as when a network fails that their server outlives. */
static void cut_off(void) {
    reset_all();
    for (int i = 0; i < opened; i++) conns[i].state = CLOSED;
    printf("{\"cut\": %d}\n", opened);
}

/* Waits until all have heard so many (what is published goes on while they come back), and a little for more. */
static void check_all(uint32_t expected) {
    int behind = 1;
    for (double start = now(); behind && now() - start < 10;) {
        turn(20);
        behind = 0;
        for (int i = 0; i < spec.connections; i++) behind += conns[i].place->next < expected;
    }
    for (double end = now() + 0.3; now() < end;) turn(20);
    int beyond = 0;
    for (int i = 0; i < spec.connections; i++) beyond += conns[i].place->next > expected;
    printf("{\"incomplete\": %d, \"beyond\": %d, \"twice\": %llu, \"disorder\": %llu, \"gaps\": %llu, \"dropped_connections\": %d}\n", behind,
           beyond, (unsigned long long)twice, (unsigned long long)disorder, (unsigned long long)gaps, closed);
}

/* The next line of standard input, serving the connections until it comes; false at its end. */
static bool next_line(char *line, int size) {
    struct pollfd in = {STDIN_FILENO, POLLIN, 0};
    while (poll(&in, 1, 0) <= 0) turn(5);
    return fgets(line, size, stdin) != NULL;
}

static void say_ready(double took) {
    printf("{\"ready\": %d, \"seconds\": %.3f}\n", joined, took);
    fflush(stdout);
}

static void come_back(void) {
    struct place *places = calloc((size_t)spec.connections, sizeof *places);
    for (int i = 0; i < spec.connections; i++) conns[i].place = &places[i];
    say_ready(connect_all());
    char line[64];
    while (next_line(line, sizeof line)) {
        if (!strncmp(line, "cut", 3)) cut_off();
        else if (!strncmp(line, "go ", 3)) come_back_now(atoi(line + 3));
        else if (!strncmp(line, "check ", 6)) check_all((uint32_t)atoi(line + 6));
        fflush(stdout);
    }
}

static void mark(void) {
    static double before, cpu_before;
    static uint64_t counted, bytes;
    sweep();
    double at = now(), cpu = own_cpu(), took = at - before;
    qsort(samples, sample_count, sizeof *samples, by_value);
    printf("{\"seconds\": %.4f, \"deliveries\": %llu, \"bytes\": %llu, \"generator_cpu\": %.1f, \"disorder\": %llu, \"gaps\": %llu, "
           "\"dropped_connections\": %d, \"p50_ms\": %.3f, \"p99_ms\": %.3f}\n",
           took, (unsigned long long)(deliveries - counted), (unsigned long long)(bytes_in - bytes), 100 * (cpu - cpu_before) / took,
           (unsigned long long)disorder, (unsigned long long)gaps, closed, percentile(0.5), percentile(0.99));
    fflush(stdout);
    before = at, cpu_before = cpu, counted = deliveries, bytes = bytes_in, sample_count = 0;
}

static void watch(void) {
    double took = connect_all();
    settle();
    samples = malloc(MAX_SAMPLES * sizeof *samples);
    for (int i = 0; i < spec.connections; i += spec.room_size) {
        conns[i].eager = conns[i].sampled = true;
        conns[i].next_seq = calloc((size_t)spec.publishers, sizeof(uint32_t));
    }
    deliveries = bytes_in = receiver_reads = receiver_bytes = 0;
    say_ready(took);
    char line[64];
    while (next_line(line, sizeof line)) {
        if (!strncmp(line, "wake", 4)) choose_wake_ups();
        else mark();
    }
}
