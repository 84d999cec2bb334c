-- name: no_gallery
SELECT to_regclass('public.paintings') IS NULL

-- name: empty_gallery -- each demo starts from nothing and removes what an earlier one left
DROP TABLE IF EXISTS public.paintings;
DROP TABLE IF EXISTS vectors.paintings CASCADE;
DO $$ BEGIN
    IF to_regclass('rowvec.pipelines') IS NOT NULL THEN
        DELETE FROM rowvec.rejects WHERE pipeline_id IN (SELECT pipeline_id FROM rowvec.pipelines WHERE name = 'paintings');
        DELETE FROM rowvec.artifacts WHERE pipeline_id IN (SELECT pipeline_id FROM rowvec.pipelines WHERE name = 'paintings');
    END IF;
END $$;
CREATE TABLE public.paintings (
    id int PRIMARY KEY,
    title text NOT NULL,
    author text NOT NULL,
    year int NOT NULL,
    technique text NOT NULL,
    type text NOT NULL,
    timeframe text NOT NULL,
    description text NOT NULL
)

-- name: copy
COPY public.paintings FROM STDIN

-- name: curate -- three inserts, four changes of the text, two changes of metadata alone, five deletes
INSERT INTO public.paintings
SELECT 1000 + id, title || ' (a study)', author, year, 'charcoal on paper', type, timeframe,
       'A quick study: ' || description
FROM public.paintings ORDER BY id LIMIT 3;
UPDATE public.paintings SET description = description || ' Cleaned and reframed this year.' WHERE id BETWEEN 11 AND 14;
UPDATE public.paintings SET technique = technique || ', on loan' WHERE id BETWEEN 21 AND 22;
DELETE FROM public.paintings WHERE id BETWEEN 31 AND 35
