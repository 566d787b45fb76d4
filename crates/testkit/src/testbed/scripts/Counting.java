import java.io.FileWriter;
import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.net.InetAddress;
import java.net.ServerSocket;
import java.net.Socket;
import java.util.ArrayList;
import java.util.List;
import java.util.Timer;
import java.util.TimerTask;
import java.util.UUID;
import java.util.concurrent.atomic.AtomicLong;

/**
 * Counting FILE: counts in a thread, a line on standard output and in FILE for each number, ticks in a timer, works in two
 * more threads, keeps memory that the collector moves, and answers HTTP on port 8080 with KEY=VALUE lines. Its token is
 * nowhere but in memory.
 */
final class Counting {
    static final AtomicLong COUNTED = new AtomicLong();
    static final AtomicLong TICKS = new AtomicLong();
    static final AtomicLong WORK = new AtomicLong();
    static final String TOKEN = UUID.randomUUID().toString();
    static final List<byte[]> KEPT = new ArrayList<>();

    public static void main(String[] arguments) throws Exception {
        FileWriter file = new FileWriter(arguments[0], true);
        thread(() -> {
            while (true) {
                long now = COUNTED.incrementAndGet();
                System.out.println(now);
                file.write(now + "\n");
                file.flush();
                Thread.sleep(50);
            }
        });
        for (int i = 0; i < 2; i++) {
            thread(() -> {
                while (true) {
                    synchronized (KEPT) {
                        KEPT.add(new byte[64 << 10]);
                        if (KEPT.size() > 100) {
                            KEPT.subList(0, 50).clear();
                        }
                    }
                    WORK.incrementAndGet();
                    Thread.sleep(5);
                }
            });
        }
        new Timer(true).scheduleAtFixedRate(new TimerTask() {
            @Override
            public void run() {
                TICKS.incrementAndGet();
            }
        }, 0, 20);
        ServerSocket server = new ServerSocket(8080, 50, InetAddress.getByName("0.0.0.0"));
        while (true) {
            try (Socket client = server.accept()) {
                client.setSoTimeout(2000);
                answer(client.getInputStream(), client.getOutputStream());
            } catch (IOException gone) {
                System.err.println("a client: " + gone);
            }
        }
    }

    static void answer(InputStream in, OutputStream out) throws IOException {
        in.read(new byte[4096]);
        String text = "token=" + TOKEN + "\ncounted=" + COUNTED + "\nticks=" + TICKS + "\nwork=" + WORK
            + "\npid=" + ProcessHandle.current().pid() + "\n";
        String head = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: " + text.length() + "\r\n\r\n";
        out.write((head + text).getBytes("US-ASCII"));
        out.flush();
    }

    interface Work {
        void run() throws Exception;
    }

    static void thread(Work work) {
        Thread thread = new Thread(() -> {
            try {
                work.run();
            } catch (Exception error) {
                error.printStackTrace();
                System.exit(1);
            }
        });
        thread.start();
    }
}
